"""Reads a batch of files in a process of its own, under limits: `python -m tests.security.reading KIND FOLDER`.

One line of JSON per file before it is read and one after, so that a file that ends the process is known by name.
"""

import faulthandler
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# Of one file, on a machine with neighbors.
MAX_SECONDS, MAX_BYTES = 60, 2 * 2**30
OUT_OF_MEMORY = (
    "MemoryError",
    "nable to allocate",
    "bad allocation",
    "bad_alloc",
    "Cannot allocate",
    "nsufficient memory",
)


class Outcome(NamedTuple):
    name: str
    kind: str  # "read", "refused", or what is a mistake of ours: "error", "hangs or dies", "memory"
    text: str = ""


def read_all(kind: str, folder: Path) -> list[Outcome]:
    """What became of every entry of a folder; the processes that read them may take MAX_BYTES more than when they start."""
    names = sorted(os.listdir(folder))
    outcomes: list[Outcome] = []
    while len(outcomes) < len(names):
        todo = names[len(outcomes) :]
        command = [sys.executable, "-m", "tests.security.reading", kind, str(folder), str(len(outcomes))]
        environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        try:
            result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, timeout=280, check=False)
            output, errors = result.stdout, result.stderr
        except subprocess.TimeoutExpired as late:
            output, errors = late.stdout or b"", late.stderr or b""
        found = [json.loads(line) for line in output.decode().splitlines() if line.startswith("{")]
        outcomes += [Outcome(todo[i], line["kind"], line["text"]) for i, line in enumerate(found)]
        if len(found) < len(todo):
            outcomes.append(Outcome(todo[len(found)], "hangs or dies", errors.decode(errors="replace")[-2000:]))
        assert b"\x1b" not in errors, errors[-500:]
        assert found or len(outcomes) == len(names), errors.decode(errors="replace")[-2000:]
    return outcomes


def mistakes(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.kind not in ("read", "refused")]


def main(kind: str, folder: Path, first: int) -> None:
    from tests.security.readers import READERS, REFUSALS

    read: Callable[[Path], object] = READERS[kind]()
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MAX_BYTES, now + MAX_BYTES))
    for name in sorted(os.listdir(folder))[first:]:
        faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
        start = time.monotonic()
        try:
            read(folder / name)
            found = "read", ""
        except REFUSALS as error:
            found = "memory" if any(word in str(error) for word in OUT_OF_MEMORY) else "refused", str(error)
        except MemoryError:
            found = "memory", traceback.format_exc()
        except Exception:
            found = "error", traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        seconds = time.monotonic() - start
        print(json.dumps({"kind": found[0], "text": found[1][-3000:], "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
