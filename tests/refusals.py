"""What a refusal on the command line is: exit code 2, one paragraph, nothing written."""

import re
from pathlib import Path

from selfpatch import cli


class Refused:
    """Expects `main(arguments)` to refuse in words that match every pattern, and to leave `out` as it is."""

    def __init__(self, capsys):
        self._capsys = capsys

    def __call__(self, arguments: list, *patterns: str, out: Path) -> str:
        before = contents(out)
        self._capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        shown = self._capsys.readouterr().err
        assert code == 2, shown
        assert shown.startswith("selfpatch: ")
        assert "Traceback" not in shown
        assert "Error(" not in shown
        assert not re.search(r"\b(settings|protocol)\.\w", shown), f"a name of our own code: {shown}"
        paragraph = [line for line in shown.splitlines() if not line.startswith("  ")]  # lists in it are indented
        assert len(paragraph) == 1 or (len(paragraph) == 2 and "\n  " in shown), shown
        for pattern in patterns:
            assert re.search(pattern, shown), f"{pattern!r} is not in: {shown}"
        assert contents(out) == before
        return shown


def contents(folder: Path) -> dict[str, bytes | None] | None:
    """Every file and folder below; None where there is no such folder."""
    if not folder.exists():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
