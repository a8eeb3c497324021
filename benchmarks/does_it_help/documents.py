"""Tables in documents: each stands between two marks, and is written out of the files of results alone."""

import re
from pathlib import Path

from benchmarks.does_it_help.results import RESULTS, WHY_RESULTS, read_results
from benchmarks.does_it_help.tables import study_tables
from benchmarks.does_it_help.why_tables import WHY_TABLES

BLOCK = re.compile(r"(<!-- table of benchmarks\.does_it_help: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.S)


def with_tables(text: str, root: Path = Path()) -> str:
    """The text of a document with its tables as the files of results below `root` have them."""
    results, why = read_results(root / RESULTS), read_results(root / WHY_RESULTS)

    def table(name: str) -> str:
        return WHY_TABLES[name](why) if name in WHY_TABLES else study_tables(results[name])

    return BLOCK.sub(lambda block: f"{block[1]}{table(block[2])}{block[3]}", text)


def write_tables(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    if (written := with_tables(text)) != text:
        document.write_text(written, encoding="utf-8")
