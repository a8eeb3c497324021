"""OUT of a study: its lock, its settings, its cells; what is done is kept, and another study is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

from selfpatch.config.io import differences
from selfpatch.errors import UserError
from selfpatch.output.atomic_files import atomic_write, require_writable
from selfpatch.output.folder_lock import FolderLock

VERSION = 1
# What is there before study.json is.
PREPARED = (".lock", "inspection.jsonl", "training_images.jsonl", "left_out.txt")


class StudyFolder:
    """OUT. study.json holds everything for the reader; cells/ what is done, one file per candidate and seed."""

    def __init__(self, path: Path):
        self.path = path
        self.study_file = path / "study.json"
        self.ranking_file = path / "ranking.md"
        self.left_out_file = path / "left_out.txt"
        self.manifest = path / "training_images.jsonl"
        self.inspection = path / "inspection.jsonl"
        self.best = path / "best"
        self.runs = path / "runs"
        self._cells = path / "cells"
        self._lock = FolderLock(path)
        self._is_new = False

    def check(self) -> dict[str, Any] | None:
        """Read study.json; None: a new study.

        Raises:
            UserError: OUT cannot be written, or holds something else.
        """
        require_writable(self.path)
        if self.study_file.exists():
            try:
                content = json.loads(self.study_file.read_text(encoding="utf-8"))
                assert isinstance(content, dict) and {"version", "settings", "plan"} <= content.keys()
            except (OSError, ValueError, AssertionError) as error:
                raise UserError(f"{self.study_file} is not that of a study; give a new or empty folder") from error
            if content["version"] != VERSION:
                raise UserError(
                    f"{self.path} holds a study of version {content['version']}, and this program writes version "
                    f"{VERSION}; give a new folder"
                )
            return content
        if self.path.exists() and any(entry.name not in PREPARED for entry in self.path.iterdir()):
            raise UserError(
                f"{self.path} is not empty and holds no study of selfpatch (no study.json); give a new or empty folder"
            )
        return None

    def require_same(self, before: dict[str, Any], settings: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the study in OUT has other settings, labels, images or weights; the differences are listed.
        """
        if lines := differences(before["settings"], json.loads(json.dumps(settings))):
            shown = "\n  ".join(lines[:20])
            raise UserError(
                f"{self.path} holds a study with other settings (then -> now):\n  {shown}\nGive a new folder for this "
                "study, or the settings of then to go on"
            )

    def take(self) -> None:
        """
        Raises:
            UserError: another process is at work in OUT.
        """
        self._is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.take()

    def give_up(self) -> None:
        """Remove a folder that was made for a study that cannot be."""
        if self._is_new and not self.study_file.exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        self._lock.close()

    def write(self, content: dict[str, Any]) -> None:
        with atomic_write(self.study_file) as temporary:
            temporary.write_text(json.dumps({"version": VERSION} | content, indent=1) + "\n", encoding="utf-8")

    def run(self, candidate: str, seed: int) -> Path:
        return self.runs / cell_name(candidate, seed)

    def scoring(self, candidate: str, seed: int, score: str) -> Path:
        """Where the training of a linear layer goes on after a cut."""
        return self.path / "scoring" / f"{cell_name(candidate, seed)}-{score.replace(' ', '-').replace('/', '-')}"

    def tidy(self) -> None:
        """Remove what only served to go on."""
        shutil.rmtree(self.path / "scoring", ignore_errors=True)

    def read_cell(self, candidate: str, seed: int) -> dict[str, Any] | None:
        """What is done of a cell; None: nothing."""
        file = self._cells / f"{cell_name(candidate, seed)}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def write_cell(self, record: dict[str, Any]) -> None:
        self._cells.mkdir(exist_ok=True)
        with atomic_write(self._cells / f"{cell_name(record['candidate'], record['seed'])}.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def cell_name(candidate: str, seed: int) -> str:
    return f"{candidate}-{seed}"
