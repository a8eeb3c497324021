"""Trackers have what metrics.jsonl has, each step once, however a run was stopped; and never end it."""

import json
import shutil
import struct
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from selfpatch.commands.pretrain import pretrain
from selfpatch.output.metric_logger import MetricLogger, read_metrics
from selfpatch.output.tracking import wandb as wandb_tracker
from selfpatch.output.tracking.tracker import TrackedRun
from selfpatch.output.tracking.trackers import TRACKERS, Trackers
from tests.small_models import tiny_config


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """A run of four steps. The checkpoint of the third was lost, as if it had been killed before that was written."""
    folder, rng = tmp_path_factory.mktemp("resumed"), np.random.default_rng(0)
    (folder / "images").mkdir()
    for index in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"images/{index}.png")
    settings = {
        "optim.steps": 4, "efficiency.num_workers": 0, "evaluate.every_steps": 2, "run.save_every": 1,
        "track": ("tensorboard", "wandb") if find_spec("wandb") else ("tensorboard",),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
        for stop_at in (3, 4):
            pretrain(
                folder / "images",
                folder / "run",
                config=tiny_config(),
                settings=settings | {"run.stop_at_step": stop_at},
            )
            if stop_at == 3:
                shutil.rmtree(folder / "run" / "checkpoints" / "step-00000003")
    return folder / "run"


def numbers_of_metrics(out: Path) -> dict[str, list[tuple[int, float]]]:
    found = defaultdict(list)
    for line in read_metrics(out / "metrics.jsonl"):
        for name, value in line.items():
            if name != "step":
                found[name].append((line["step"], value))
    return found


def events(out: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = str(out / "tracking" / "tensorboard")
    return EventAccumulator(folder, size_guidance={"scalars": 0, "images": 0}).Reload()


def numbers_of_tensorboard(out: Path) -> dict[str, list[tuple[int, float]]]:
    found = events(out)
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def assert_same(numbers, expected) -> None:
    assert numbers.keys() == expected.keys()
    for name in expected:
        assert [step for step, _ in numbers[name]] == [step for step, _ in expected[name]], name
        np.testing.assert_array_equal(
            np.float32([x for _, x in numbers[name]]), np.float32([x for _, x in expected[name]]), err_msg=name
        )


def test_tensorboard_has_every_number_and_picture_once(resumed):
    expected = numbers_of_metrics(resumed)
    assert [step for step, _ in expected["loss"]] == [1, 2, 3, 4]
    assert_same(numbers_of_tensorboard(resumed), expected)
    found = events(resumed)
    pictures = {path.stem: path for path in (resumed / "pictures").glob("*.png")}
    assert set(found.Tags()["images"]) == set(pictures) >= {"curves"}
    for name, path in pictures.items():
        shown = found.Images(name)
        assert [image.step for image in shown] == [2, 4]
        assert shown[-1].encoded_image_string == path.read_bytes()
        with Image.open(path) as image:
            assert (shown[-1].width, shown[-1].height) == image.size


def log_all(path: Path, steps, *, first_step: int = 0, names=("tensorboard",), value: float = 0.0, close=True):
    logger = MetricLogger(path / "metrics.jsonl", first_step=first_step)
    trackers = Trackers(names, path, logger, settings={}, first_step=first_step, pictures=path / "pictures")
    for step in steps:
        logger.log(step, {"loss": value + step})
        logger.log(step, {"in_context/mIoU": value - step})
    if close:
        trackers.close()
    return trackers


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    killed = log_all(tmp_path, range(4), close=False)
    log_all(tmp_path, range(3), value=10)
    killed.close()
    log_all(tmp_path, range(3, 5), first_step=2)
    assert_same(numbers_of_tensorboard(tmp_path), numbers_of_metrics(tmp_path))
    assert numbers_of_tensorboard(tmp_path)["loss"] == [(0, 10), (1, 11), (2, 12), (3, 3), (4, 4)]


def test_a_tracker_that_comes_late_is_given_what_was_before(tmp_path):
    log_all(tmp_path, range(4), names=())
    assert not (tmp_path / "tracking").exists()
    log_all(tmp_path, range(4, 6), first_step=3)
    assert_same(numbers_of_tensorboard(tmp_path), numbers_of_metrics(tmp_path))
    assert [step for step, _ in numbers_of_tensorboard(tmp_path)["loss"]] == list(range(6))


def test_a_tracker_that_fails_is_reported_once_and_costs_no_line(tmp_path, capsys, monkeypatch):
    class Failing:
        hint, logged_step = "look", -1

        def __init__(self, run):
            pass

        def log(self, step, values):
            if step == 2:
                raise ConnectionError("the network\nis gone")

    monkeypatch.setitem(TRACKERS, "wandb", (__name__, "FAILING"))
    monkeypatch.setitem(globals(), "FAILING", Failing)
    log_all(tmp_path, range(5), names=("wandb", "tensorboard"))
    said = capsys.readouterr().out
    assert said.count("warning: wandb has failed (the network is gone); the run goes on without it") == 1
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 10
    assert len(numbers_of_tensorboard(tmp_path)["loss"]) == 5


def test_a_tracker_that_cannot_be_opened_does_not_end_the_run(tmp_path, capsys):
    (tmp_path / "tracking").write_text("a file where the folder should be")
    log_all(tmp_path, range(2))
    assert "warning: tensorboard has failed" in capsys.readouterr().out
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4


# Weights & Biases.


def records(file: Path):
    """The records of an offline file, whose blocks of 32 KiB have the frames of LevelDB's log."""
    from wandb.proto import wandb_internal_pb2

    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7]) if left >= 7 else (0, 0)
        if kind == 0:
            at += left
            continue
        record, at = record + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


OF_A_PICTURE = {"/width", "/height", "/size"}


def rows_of_wandb(out: Path) -> list[dict]:
    """Every row of all attempts, as `wandb sync` would send them; it has one run for all of them."""
    rows, ids = [], set()
    for file in sorted((out / "tracking/wandb/wandb").glob("offline-run-*/run-*.wandb")):
        for record in records(file):
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    assert len(ids) == 1
    return rows


@pytest.mark.skipif(not find_spec("wandb"), reason="W&B is not installed")
def test_wandb_offline_has_every_number_and_picture_once(resumed):
    rows = rows_of_wandb(resumed)
    assert [row["_step"] for row in rows] == [1, 2, 3, 4]
    numbers = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if (
                not name.startswith("_")
                and "/" + name.partition("/")[2] not in OF_A_PICTURE
                and isinstance(value, int | float)
            ):
                numbers[name].append((row["_step"], value))
    assert numbers == numbers_of_metrics(resumed)
    last = {name.removesuffix("/format") for name, value in rows[-1].items() if value == "png"}
    assert last == {path.stem for path in (resumed / "pictures").glob("*.png")}


@pytest.fixture
def fake_wandb(monkeypatch):
    """A server that knows the steps it has, for what needs a network."""
    fake = SimpleNamespace(sent=[], server_step=0, key=None, Settings=dict, Image=str)
    fake.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="online"))
    fake.login = lambda prompt, verify: fake.key is not None

    def init(**settings):
        fake.settings = settings
        log = lambda values, step, commit: fake.sent.append((step, values))  # noqa: E731
        return SimpleNamespace(step=fake.server_step, url="URL", dir=".", log=log, finish=lambda: None)

    fake.init = init
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb_tracker, "_import", lambda: fake)
    return fake


def test_wandb_online_is_not_sent_a_step_twice(fake_wandb, tmp_path):
    """It keeps what it has: a step that is rolled back is computed again alike, and stands there already."""
    tracked = TrackedRun(tmp_path / "wandb", "name", {"seed": 0}, first_step=2)
    fake_wandb.server_step = 5  # it has 0 to 4
    tracker = wandb_tracker.WandB(tracked)
    for step in range(3, 8):
        tracker.log(step, {"loss": step})
        tracker.log(step, {"mIoU": -step})
    tracker.close()
    assert fake_wandb.sent == [(step, {"loss": step, "mIoU": -step}) for step in (5, 6, 7)]
    first_id = fake_wandb.settings["id"]
    wandb_tracker.WandB(tracked)
    assert fake_wandb.settings["id"] == first_id
    assert fake_wandb.settings["resume"] == "allow"


def test_an_attempt_that_was_sent_already_stays(tmp_path):
    attempts = wandb_tracker.Attempts(tmp_path)
    for name, last in (("offline-run-1", 4), ("offline-run-2", 9), ("offline-run-3", None), ("offline-run-4", 9)):
        (tmp_path / "wandb" / name).mkdir(parents=True)
        attempts.begin(name)
        if last is not None:
            attempts.end(last)
    (tmp_path / "wandb/offline-run-2/run-a.wandb.synced").touch()
    assert wandb_tracker.Attempts(tmp_path).take_back(6) == 9
    assert sorted(path.name for path in (tmp_path / "wandb").iterdir()) == ["offline-run-1", "offline-run-2"]
