"""The sbatch script takes any text as one argument; no command opens a connection unless it is asked to."""

import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from selfpatch.commands.launch.slurm import as_directive, script_text
from tests.security.reading import ROOT

# Whatever an argument can hold, and what shells and sbatch make something of.
PIECES = [
    "$(touch canary)",
    "`id`",
    "'",
    '"',
    "\\",
    "\n#SBATCH --account=x\n",
    "; rm -r x",
    "${IFS}",
    "&&",
    "*",
    "~",
    "\x1b[2J",
    "--",
]
texts = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
    max_size=4,
).map("".join)


@given(option=texts, words=st.lists(texts, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_text_in_the_script_is_one_argument(option, words):
    script = script_text([f"--job-name={option}"], words, None)
    # The shell's own reading of it: sbatch outside of a job, srun inside.
    stubs = 'sbatch() { printf \'%s\\0\' "$@"; exit; }; srun() { printf \'%s\\0\' "$@"; }; exec() { "$@"; }\n'
    for environ, expected in (({}, [f"--job-name={option}"]), ({"SLURM_JOB_ID": "1"}, words)):
        result = subprocess.run(["bash", "-c", stubs + script, "script"], env=environ, capture_output=True, check=True)
        assert not result.stderr
        found = result.stdout.decode().split("\0")[:-1]
        assert found[: len(expected)] == expected if not environ else found[-len(expected) :] == expected
    directive = as_directive(f"--job-name={option}")
    assert directive is None or directive.isprintable()


OFFLINE = """
import socket, sys
def refuse(*arguments, **settings):
    raise SystemExit(f"a connection: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
from selfpatch.cli import main
for arguments in ARGUMENTS:
    code = main(arguments)
    assert code == 0, (arguments, code)
"""


def test_no_command_opens_a_connection(tmp_path):
    import numpy as np
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(images / f"{i}.png")
    run, model = str(tmp_path / "run"), ["--backbone.name", "vit_tiny_patch16_224", "--backbone.depth", "1"]
    small = ["--crops.global-size", "32", "--crops.local-size", "16", "--optim.batch-size", "4", "--run.device", "cpu"]
    commands = [
        ["check", str(images)],
        ["pretrain", str(images), run, "--recipe", "dino", *model, *small, "--run.stop-at-step", "1", "--efficiency.num-workers", "0"],
        ["embed", run, str(images), str(tmp_path / "features"), "--image-size", "32", "--device", "cpu"],
        ["export", run, str(tmp_path / "model.safetensors")],
    ]  # fmt: skip
    script = OFFLINE.replace("ARGUMENTS", repr(commands))
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=250, check=False
    )
    assert result.returncode == 0, result.stdout[-1500:] + result.stderr[-1500:]
