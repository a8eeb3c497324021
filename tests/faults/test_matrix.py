"""Every row of the matrix has a test by its number, and docs/reliability.md names all of them."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_row_has_a_named_test_that_the_documentation_knows():
    tests = {
        name
        for file in HERE.glob("test_*.py")
        for name in re.findall(r"^def (test_row_\d\d_\w+)", file.read_text(), re.M)
    }
    assert {int(name[9:11]) for name in tests} == set(range(1, 40))
    text = (HERE.parents[1] / "docs" / "reliability.md").read_text()
    rows = {int(number): row for number, row in re.findall(r"^\| (\d+) (\|.*)$", text, re.M)}
    assert rows.keys() == set(range(1, 40))
    for number, row in rows.items():
        assert set(re.findall(r"test_row_\w+", row)) == {name for name in tests if int(name[9:11]) == number}
