"""docs/models.md: every row of its table names a test that exists."""

import re
from pathlib import Path

from selfpatch.backbones.checkpoints.networks import EVALUATED
from tests.backbones.checkpoints.test_networks import PAIRS

HERE = Path(__file__).parent
TEXT = (HERE.parents[2] / "docs" / "models.md").read_text()


def test_rows_name_tests():
    rows = re.findall(r"\| `([./\w]+)::(\w+)` \|$", TEXT, flags=re.MULTILINE)
    table = TEXT.partition("## Every form that was tried")[2].partition("\n## ")[0]
    assert len(rows) == len(re.findall(r"^\|", table, flags=re.MULTILINE)) - 2 > 25
    for file, name in rows:
        assert f"def {name}(" in (HERE / file).read_text(), (file, name)


def test_every_rule_on_networks_is_tried():
    """Each row of EVALUATED decides one of the pairs that test_networks.py reads."""
    for evaluated, sibling, reason in EVALUATED:
        assert any(
            any(re.fullmatch(evaluated, part) for part in read.split("."))
            and any(re.fullmatch(sibling, part) for part in other.split("."))
            for read, other, _ in PAIRS.values()
        ), reason
