"""The file of all results: studies (a regime and a split), each with its budget and its cells."""

import json
from pathlib import Path
from typing import Any

from selfpatch.config.io import differences
from selfpatch.errors import UserError
from selfpatch.output.atomic_files import atomic_write

RESULTS = Path("benchmarks/results/does_it_help.json")
WHY_RESULTS = Path("benchmarks/results/does_it_help_why.json")

Results = dict[str, Any]  # study -> {"budget": ..., "cells": {cell -> record}}


def read_results(file: Path) -> Results:
    """
    Raises:
        UserError: no file of results.
    """
    if not file.exists():
        return {}
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        assert all({"budget", "cells"} <= study.keys() for study in results.values())
    except (ValueError, AttributeError, AssertionError) as error:
        raise UserError(f"{file} is not a file of results of this benchmark; give another one (--results)") from error
    return results


def read_study(folder: Path) -> Results:
    """Cells of one working folder, those under way too."""
    budget = folder / "budget.json"
    cells = {file.stem: json.loads(file.read_text()) for file in sorted((folder / "cells").glob("*.json"))}
    return {folder.name: {"budget": json.loads(budget.read_text()), "cells": cells}} if budget.exists() else {}


def merge(first: Results, second: Results) -> Results:
    """All cells of both; of a cell that both have, all scores, the second's where they differ.

    Raises:
        UserError: a study has another budget in the one than in the other.
    """
    merged = dict(first)
    for name, study in second.items():
        known = merged.get(name, {"budget": study["budget"], "cells": {}})
        if changed := differences(*in_common(known["budget"], study["budget"])):
            raise UserError(
                f"{name} was made with other settings, and its cells cannot be compared:\n  "
                + "\n  ".join(changed[:12])
                + "\nGive the same settings, or another file (--results)"
            )
        cells = dict(known["cells"])
        for cell, record in study["cells"].items():
            scores = cells.get(cell, {}).get("scores", {}) | record["scores"]
            cells[cell] = cells.get(cell, {}) | record | {"scores": scores}
        merged[name] = {"budget": study["budget"], "cells": dict(sorted(cells.items()))}
    return dict(sorted(merged.items()))


def in_common(old: Any, new: Any) -> tuple[Any, Any]:
    """Both without what only one of them has: a setting that came later, and is at its default since."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return old, new
    pairs = {name: in_common(old[name], new[name]) for name in old if name in new}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def write_results(results: Results, file: Path) -> None:
    """One line per score, so that a difference of two versions can be read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        temporary.write_text(_lines(results, depth=4) + "\n", encoding="utf-8")


def _lines(value: Any, depth: int, indent: str = "") -> str:
    if not isinstance(value, dict) or depth == 0 or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    items = [f"{inner}{json.dumps(name)}: {_lines(item, depth - 1, inner)}" for name, item in value.items()]
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"
