"""What users get wrong: a paragraph that says what came, what is allowed and what to do; exit code 2; nothing written."""

import fcntl
import inspect
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from selfpatch import cli, config
from selfpatch.config.io import write_yaml
from selfpatch.demo.scenes import write_scenes
from selfpatch.evaluation import protocols
from tests.small_models import tiny_config

NO_CUDA = not torch.cuda.is_available()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Twelve images of 48 px, and five with masks; a settings file that trains on them in moments."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_unlabeled=12, num_train=3, num_val=2, size=48, seed=0)
    write_yaml(tiny_config(), folder / "config.yaml")
    return folder


@pytest.fixture(scope="module")
def finished_run(scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert pretrain(scenes, out, "--optim.steps", "1") == 0
    return out


@pytest.fixture
def a_run(finished_run, tmp_path) -> Path:
    """One that a test may spoil."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def pretrain(scenes: Path, out: Path, *flags: str, images: Path | None = None) -> int:
    start = ["pretrain", images or scenes / "images", out, "--config", scenes / "config.yaml"]
    return cli.main([str(argument) for argument in [*start, "--efficiency.num-workers", 0, *flags]])


def contents(folder: Path) -> dict[str, bytes | None] | None:
    """Every file and folder below; None where there is no such folder."""
    if not folder.exists():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


class Refused:
    """Expects `main(arguments)` to refuse in words that match every pattern, and to leave `out` as it is."""

    def __init__(self, capsys):
        self._capsys = capsys

    def __call__(self, arguments: list, *patterns: str, out: Path) -> str:
        before = contents(out)
        self._capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        said = self._capsys.readouterr().err
        assert code == 2, said
        assert said.startswith("selfpatch: ")
        assert "Traceback" not in said
        assert "Error(" not in said
        assert "settings." not in said.replace("settings. ", "")  # names of our own code
        assert len(said.strip().splitlines()) == 1 or "then -> now" in said or "NAME.jpg" in said, said
        for pattern in patterns:
            assert re.search(pattern, said), f"{pattern!r} is not in: {said}"
        assert contents(out) == before
        return said


@pytest.fixture
def refused(capsys):
    return Refused(capsys)


@pytest.fixture
def pretrain_refused(refused, scenes, tmp_path):
    """`pretrain` with these flags is refused; OUT is new unless it is given."""

    def check(*flags, says: tuple[str, ...] | str, images: Path | None = None, out: Path | None = None) -> str:
        out = out or tmp_path / "out"
        settings = [] if {"--config", "--recipe"} & set(flags) else ["--config", scenes / "config.yaml"]
        arguments = ["pretrain", images or scenes / "images", out, *settings, "--efficiency.num-workers", 0, *flags]
        return refused(arguments, *([says] if isinstance(says, str) else says), out=out)

    return check


# Images


def test_folder_missing(pretrain_refused, tmp_path):
    pretrain_refused(
        images=tmp_path / "nope" / "deeper", says=(r"nope.deeper does not exist \(but .* does\)", "give a folder")
    )


def test_folder_is_a_file(pretrain_refused, scenes):
    pretrain_refused(images=scenes / "config.yaml", says=("config.yaml is a file", "give the folder"))


def test_folder_empty(pretrain_refused, tmp_path):
    (tmp_path / "images").mkdir()
    pretrain_refused(images=tmp_path / "images", says=("there is no image below", r"\.jpg", "found no file at all"))
    (tmp_path / "images" / "notes.txt").touch()
    pretrain_refused(images=tmp_path / "images", says=r"found 1 files, none with such an ending \(1 \.txt\)")


def test_no_readable_image(pretrain_refused, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(6):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(b"no picture")
    pretrain_refused(
        images=tmp_path / "images",
        says=("none of 6 images.*can be read", "0.jpg: not a JPEG", "`selfpatch check` lists"),
    )


def test_fewer_images_than_a_batch(pretrain_refused):
    pretrain_refused("--optim.batch-size", 13, says=("12 images do not fill one batch of 13", r"optim\.batch-size"))


def test_image_smaller_than_a_crop_runs_and_warns_with_a_count(scenes, tmp_path, capsys):
    """Two of four a step are small: said once when it is first seen, and once at the end."""
    images = tmp_path / "images"
    images.mkdir()
    for i, side in enumerate((48, 20, 48, 20)):
        Image.fromarray(np.full((side, side, 3), 60 * i, np.uint8)).save(images / f"{i}.png")
    assert pretrain(scenes, tmp_path / "out", "--optim.steps", "3", images=images) == 0
    said = capsys.readouterr().out
    warnings = [line for line in said.splitlines() if "smaller than a global crop" in line]
    assert ["2 of 4 images" in warnings[0], "6 of 12 images" in warnings[1]] == [True, True]
    assert len(warnings) == 2
    assert "(32 px) and enlarged" in warnings[0]


def test_large_enough_images_bring_no_warning(scenes, tmp_path, capsys):
    assert pretrain(scenes, tmp_path / "out", "--optim.steps", "2") == 0
    assert "warning" not in capsys.readouterr().out


# Settings


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        # names
        (["--optim.lrr", "1"], ["Unrecognized options: --optim.lrr", "Did you mean --optim.lr or"]),
        (["--optim.epoch=3"], ["Unrecognized options: --optim.epoch", "Did you mean --optim.epochs"]),
        (["--backbone.depht", "3"], [r"Did you mean --backbone.depth\?", "All flags: selfpatch pretrain --help"]),
        (["stray"], ["Unrecognized options: stray"]),
        # types
        (["--optim.lr", "high"], [r"--optim.lr cannot be 'high'. It takes: --optim.lr \{None\}\|FLOAT peak learning"]),
        (["--seed=one"], ["--seed cannot be 'one'. It takes: --seed INT"]),
        (["--crops.global-size", "3.5"], [r"--crops.global-size cannot be '3.5'.*INT\|\{INT INT\} side of the global"]),
        (["--crops.global-scale", "0.5"], ["--crops.global-scale'. Expected 2 values"]),
        (["--seed"], ["Missing value for argument '--seed'"]),
        (["--objectives.selfpatch.borders", "x"], ["invalid choice 'x'", r"\('wrap', 'clip'\)"]),
        # ranges
        (["--optim.lr", "-1"], ["selfpatch: optim.lr is -1.0; it must be above 0"]),
        (["--backbone.drop-path", "2"], [r"backbone.drop-path is 2.0; it is a probability in \[0, 1\)"]),
        (["--objectives.dino.head.num-prototypes", "0"], ["in objectives.dino.head: head.num-prototypes is 0; it"]),
        (["--objectives.selfpatch.num-positives", "9"], ["every patch has 8 neighbours: choose 1 to 8, or a larger"]),
        (["--objectives.selfpatch.window-size", "4"], ["window-size is 4; an odd number"]),
        (["--efficiency.num-workers", "-1"], ["efficiency.num-workers is -1; 0 reads"]),
        (["--run.save-every", "0"], ["run.save-every is 0; it must be at least 1"]),
        (["--evaluate.image-size", "0"], ["evaluate.image-size is 0; it must be above 0"]),
        (["--run.max-bad-fraction", "20"], [r"run.max-bad-fraction is 20.0; it is a share of the images, in \[0, 1\]"]),
        (["--seed", "-1"], ["seed is -1; it must be 0 or more"]),
        # what must fit together
        (["--crops.global-size", "36"], ["global-size 36 x 36 is not a multiple of the patch size 8 x 8", "is 32 x 32"]),
        (["--crops.local-size", "20"], ["crops.local-size 20 x 20 is not a multiple", r"\(crops.local-size 16\)"]),
        (["--crops.local-size", "32"], ["crops.local-size 32 is not smaller than crops.global-size 32", "num-local 0"]),
        (["--optim.accumulate", "3"], ["optim.batch-size 4 cannot be cut into 3 equal parts.*optim.accumulate"]),
        (["--objectives.selfpatch.window-size", "5"], ["4 x 4 patches is smaller than the window of 5 x 5", "larger crops"]),
        (["--backbone.num-heads", "5"], ["timm cannot build 'vit_tiny_patch16_224'", "leave out the setting"]),
        # names of things
        (["--backbone.name", "vit_tinny_patch16_224"], ["unknown backbone 'vit_tinny", "Nearest: vit_tiny_patch16_224"]),
        (["--backbone.name", "resnet18"], ["resnet18", "[Bb]ackbones are vision transformers"]),
        (["--recipe", "dino-selfpach"], ["recipe 'dino-selfpach'; did you mean 'dino-selfpatch'", "There are: dino"]),
        pytest.param(
            ["--run.device", "cuda"],
            [r"no device 'cuda' here; there is: cpu \(or auto\)"],
            marks=pytest.mark.skipif(not NO_CUDA, reason="it is there"),
        ),
        (["--run.device", "tpu"], ["no device 'tpu' here; there is: cpu"]),
    ],
    ids=" ".join,
)  # fmt: skip
def test_settings(flags, says, pretrain_refused):
    pretrain_refused(*flags, says=tuple(says))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no settings file .*config.yaml; give the config.yaml of a run"),
        (b"optim:\n  lrr: 1\n", r"config.yaml: unknown setting 'optim.lrr'; did you mean 'optim.lr'\?"),
        (b"optim:\n  lr: high\n", "config.yaml: setting optim.lr is 'high'; it must be float"),
        (b"optim:\n  lr: -1\n", "config.yaml: optim.lr is -1.0; it must be above 0"),
        (b"a: [\n", "is not a settings file in YAML"),
        (b"\xff\xd8\xff\xe0 a JPEG", "is not a settings file in YAML"),
        (b"[" * 3000, "is not a settings file in YAML"),
        (b"seed: 2020-99-99\n", "is not a settings file in YAML"),
        (b"just words", "must be a group of settings, not 'just words'"),
    ],
)
def test_settings_file(text, says, pretrain_refused, tmp_path):
    if text is not None:
        (tmp_path / "config.yaml").write_bytes(text)
    pretrain_refused("--config", tmp_path / "config.yaml", says=says)


# OUT


def test_out_of_another_run_shows_setting_by_setting(pretrain_refused, a_run):
    said = pretrain_refused(
        "--optim.steps", 1, "--optim.lr", 0.5, "--crops.num-local", 3, out=a_run, says=("other settings", "new folder")
    )
    assert [line.strip() for line in said.splitlines()[1:-1]] == ["crops.num_local: 2 -> 3", "optim.lr: 0.001 -> 0.5"]


def test_out_below_a_file(pretrain_refused, refused, scenes, finished_run, tmp_path):
    file = tmp_path / "file"
    file.touch()
    pretrain_refused(out=file / "run", says=("file.run cannot be a folder", "file is a file; give another folder"))
    pretrain_refused(out=file, says="file is a file; give another folder")
    for command in (
        ["evaluate", finished_run, "--data", scenes / "ade20k", "--out", file / "scores"],
        ["visualize", finished_run, scenes / "images", file / "pictures"],
        ["embed", finished_run, scenes / "images", file / "vectors"],
        ["export", finished_run, file / "exported"],
        ["demo", file / "demo"],
    ):
        refused(command, "file is a file; give another folder", out=file)


def test_out_without_permission(pretrain_refused, tmp_path, monkeypatch):
    """Root may write anywhere, so the system's answer is made up."""
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path / "locked")
    pretrain_refused(out=tmp_path / "locked" / "run", says=("locked is not writable for you", "give another folder"))


def test_out_holds_other_files(pretrain_refused, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    pretrain_refused(out=tmp_path / "thesis", says=("thesis is not empty and holds no run", "new or empty folder"))


def test_out_in_use_by_another_process(pretrain_refused, a_run):
    # Shared, so that only an exclusive lock, as a run must take, is refused.
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_SH); print('held', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, a_run / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        pretrain_refused(
            "--optim.steps", 1, out=a_run, says=(r"run is in use by process \d+ on ", "wait for it, stop it")
        )
        other.stdin.close()
    with (a_run / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # neither process holds it any more


def test_images_changed_since_the_checkpoint(pretrain_refused, scenes, a_run, tmp_path):
    images = Path(shutil.copytree(scenes / "images", tmp_path / "images"))
    next(images.iterdir()).unlink()
    pretrain_refused(
        "--optim.steps", 1, "--run.log-every", 7, images=images, out=a_run,
        says=(r"the images have changed since .*step-00000001 was written \(12 then, 11 now", "put them back"),
    )  # fmt: skip


def test_demo_into_a_folder_with_other_files(refused, tmp_path):
    (tmp_path / "chapter.tex").write_text("precious")
    refused(["demo", tmp_path], "is not empty; give a new or empty folder for the demo", out=tmp_path)


# Models


def test_resume_from_another_backbone(pretrain_refused, finished_run):
    newest = finished_run / "checkpoints" / "step-00000001"
    says = ("step-00000001 holds a run with other settings", "backbone.embed_dim: 32 -> 48", "the settings of then")
    said = pretrain_refused("--backbone.embed-dim", 48, "--resume", newest, says=says)
    assert len(said) < 1000


def test_resume_from_no_checkpoint(pretrain_refused, finished_run, tmp_path):
    pretrain_refused("--resume", finished_run, says=("not a whole checkpoint", r"such as RUN/checkpoints/step-"))
    pretrain_refused("--resume", tmp_path / "nope", says="nope is not a whole checkpoint")


def test_init_from_another_backbone(pretrain_refused, finished_run):
    pretrain_refused(
        "--backbone.embed-dim", 48, "--init-from", finished_run, says=("another backbone", "At least 90 % must match")
    )
    pretrain_refused("--backbone.num-heads", 4, "--init-from", finished_run, says="has 2 attention heads, not 4")
    pretrain_refused("--init-from", finished_run / "nope", says=("nope does not exist", "A model is a run folder"))


def test_weights_that_match_less_than_90_percent(refused, finished_run, tmp_path):
    """A checkpoint with the layout of DINO in which a block lacks its attention."""
    weights = {
        name: tensor for name, tensor in load_file(finished_run / "backbone.safetensors").items() if "attn" not in name
    }
    torch.save(weights, tmp_path / "half.pth")
    out = tmp_path / "exported"
    refused(
        ["export", tmp_path / "half.pth", out, "--num-heads", 2],
        "half.pth belongs to another backbone: .* tensors match; .* missing: .*attn", "At least 90 % must match", out=out,
    )  # fmt: skip


def commands_with_a_model(model: Path | str, scenes: Path, out: Path) -> list[list]:
    return [
        ["evaluate", model, "--data", scenes / "ade20k", "--out", out],
        ["visualize", model, scenes / "images", out],
        ["embed", model, scenes / "images", out],
        ["export", model, out],
    ]


def test_model_missing_with_nearest_siblings(refused, scenes, a_run, tmp_path):
    for command in commands_with_a_model(tmp_path / "runn", scenes, tmp_path / "out"):
        refused(command, "runn does not exist. Nearest there: run", "an original checkpoint", out=tmp_path / "out")


def test_model_that_is_none(refused, scenes, tmp_path):
    (tmp_path / "notes.pth").write_text("no checkpoint")
    (tmp_path / "notes.safetensors").write_text("no checkpoint")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name, says in {
        "notes.pth": "notes.pth is no checkpoint that can be read safely",
        "notes.safetensors": "notes.safetensors is damaged or no safetensors file",
        "other.pth": "other.pth holds no vision transformer",
        ".": "is no run: it has no backbone.safetensors",
    }.items():
        refused(commands_with_a_model(tmp_path / name, scenes, tmp_path / "out")[0], says, out=tmp_path / "out")
    refused(
        ["export", "timm:vit_smal_patch16_224", tmp_path / "out"],
        "Nearest: vit_small_patch16_224",
        out=tmp_path / "out",
    )


def test_number_of_heads_of_an_unusual_width(refused, scenes, finished_run, tmp_path):
    torch.save(load_file(finished_run / "backbone.safetensors"), tmp_path / "unusual.pth")
    out = tmp_path / "out"
    for command in commands_with_a_model(tmp_path / "unusual.pth", scenes, out):
        refused(command, "is 32 wide, and how many attention heads", "num-heads", out=out)
    assert cli.main(["export", str(tmp_path / "unusual.pth"), str(out), "--num-heads", "2"]) == 0
    for command in commands_with_a_model(out, scenes, tmp_path / "again"):
        refused([*command, "--num-heads", 4], "has 2 attention heads, not 4", out=tmp_path / "again")


# Labelled images


def remove(what: str):
    def change(data: Path) -> None:
        next((data / what / "training").iterdir()).unlink()

    return change


def resize_mask(data: Path) -> None:
    path = next((data / "annotations" / "training").iterdir())
    Image.open(path).resize((10, 12), Image.Resampling.NEAREST).save(path)


def label_beyond_the_classes(data: Path) -> None:
    path = next((data / "annotations" / "training").iterdir())
    mask = np.array(Image.open(path))
    mask[0, 0] = 8
    Image.fromarray(mask).save(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            remove("images"),
            "1 of 3 masks in .* have no image of the same name in .*; add the images or remove the masks",
        ),
        (remove("annotations"), "1 of 3 images in .* have no mask .*; add the masks or remove the images"),
        (resize_mask, r"1 of 5 masks differ from their images in size \(width x height\): scene_.*its mask 10 x 12"),
        (label_beyond_the_classes, "has a pixel labelled 8, but .*classes.txt names 7 classes.*from 0 to 7"),
        (lambda data: shutil.rmtree(data / "annotations"), "holds classes.txt, images; labelled images are expected"),
        (shutil.rmtree, "there is no folder .*data; give the folder that holds the labelled images"),
    ],
    ids=["no image", "no mask", "size", "label", "no masks", "no folder"],
)
def test_labelled_images(change, says, pretrain_refused, refused, scenes, finished_run, tmp_path):
    data = Path(shutil.copytree(scenes / "ade20k", tmp_path / "data"))
    change(data)
    pretrain_refused("--evaluate.data", data, says=says)
    out = tmp_path / "scores"
    refused(["evaluate", finished_run, "--data", data, "--out", out, "--device", "cpu"], says, out=out)


# Commands and their own names


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pretrian", "a", "b"], [r"unknown command 'pretrian'; did you mean 'pretrain'\? There are: demo, check"]),
        (["pretrain"], ["Missing from selfpatch pretrain: IMAGES the folder of images.* OUT the folder to write to"]),
        (["evaluate", "m", "--task", "linear"], ["unknown task 'linear'", "There are: in-context-segmentation"]),
        (["evaluate", "m", "--preset", "quik"], [r"preset of in-context-segmentation 'quik'; did you mean 'quick'\?"]),
        (["evaluate", "m", "--task", "linear-segmentation", "--preset", "hummingbird"], ["There are: dinov3, dinov2"]),
        (["evaluate", "m", "--data", "d", "--out", "o", "--image-size", "-4"], ["image-size is -4; it must be above"]),
        (["evaluate", "m", "--data", "d", "--out", "o", "--imagesize", "4"], [r"Did you mean --image-size\?"]),
        (["evaluate", "m", "--data", "d", "--out", "o", "--device", "cuda:7"], ["no device 'cuda:7' here; there is"]),
        (["export", "m", "o", "--format", "onxn"], ["invalid choice 'onxn' for argument '--format'", "timm"]),
        (["visualize", "m", "i", "o", "--count", "0"], ["count is 0; at least one"]),
        (["check", "nope"], ["the folder nope does not exist"]),
        (["embed", "m", "nope", "o"], ["the folder nope does not exist"]),
    ],
)  # fmt: skip
def test_commands(arguments, says, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(arguments, *says, out=tmp_path)


@pytest.mark.parametrize("width", [40, 300])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_mistakes_read_the_same_in_every_terminal(width, encoding, refused, monkeypatch, tmp_path):
    """tyro draws boxes as wide as the terminal, with lines that the terminal knows."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout.buffer, "encoding", encoding, raising=False)
    monkeypatch.setattr("sys.stdout", open(tmp_path / "stdout", "w", encoding=encoding))  # noqa: SIM115
    said = [
        refused(["pretrain", "a", "b", flag, "x"], out=tmp_path / "out")
        for flag in ("--optim.lrr", "--optim.lr", "--seed")
    ]
    assert said == [
        "selfpatch: Unrecognized options: --optim.lrr, x. Did you mean --optim.lr or --optim.min-lr? "
        "All flags: selfpatch pretrain --help\n",
        "selfpatch: --optim.lr cannot be 'x'. It takes: --optim.lr {None}|FLOAT peak learning rate for 256 images a "
        "batch; None: derived (default: 0.0005). All flags: selfpatch pretrain --help\n",
        "selfpatch: --seed cannot be 'x'. It takes: --seed INT all random numbers follow from it (default: 0). "
        "All flags: selfpatch pretrain --help\n",
    ]
    sys.stdout.close()


def test_traceback_on_request(scenes, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        cli.main(["pretrain", str(tmp_path / "nope"), str(tmp_path / "out"), "--traceback"])


# Help


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)], ids=lambda command: "".join(command))
def test_help_needs_no_torch_and_less_than_a_second(command):
    code = (
        "import sys, time; from selfpatch.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'timm', 'cv2', 'PIL', 'matplotlib', 'scipy'} & sys.modules.keys()\n"
        "print('heavy:', sorted(heavy), 'cpu:', time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    heavy, cpu = re.search(r"heavy: (\[.*\]) cpu: (\S+)", done.stdout).groups()
    assert heavy == "[]"
    assert float(cpu) < 1
    assert "usage: selfpatch" in done.stdout


PROTOCOLS = [import_module(f"{protocols.__name__}.{found.name}") for found in iter_modules(protocols.__path__)]


@pytest.mark.parametrize("module", [config, *PROTOCOLS], ids=lambda module: module.__name__)
def test_every_setting_has_help_of_its_own(module):
    """tyro also gives a comment to the fields on the lines right after the one it stands above."""
    lines = inspect.getsource(module).splitlines()
    is_field = [re.match(r"    \w+: .+ = ", line) is not None for line in lines]
    assert any(is_field) or module.__name__.endswith(".ranges")
    borrowed = [
        line
        for i, line in enumerate(lines)
        if is_field[i] and is_field[i - 1] and lines[i - 2].lstrip().startswith("# ")
    ]
    assert borrowed == []
