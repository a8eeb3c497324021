import numpy as np
import pytest
from PIL import Image

from selfpatch.visualization.sheet import (
    ColorBar,
    Panel,
    _font,
    _shortened,
    draw_sheet,
    heat,
    image_panel,
    map_panel,
    wrap,
)


def panel(width: int, height: int, color: tuple[int, int, int], caption: str = "") -> Panel:
    return Panel(Image.new("RGB", (width, height), color), caption)


def test_panels_keep_their_columns():
    """The blue panel of the second row begins where the green one of the first does."""
    rows = [
        [panel(300, 40, (255, 0, 0)), panel(50, 40, (0, 255, 0))],
        [panel(80, 40, (9, 9, 9)), panel(50, 40, (0, 0, 255))],
    ]
    pixels = np.asarray(draw_sheet("Title", "one line", rows))
    columns = [np.flatnonzero((pixels == color).all(axis=-1).any(axis=0)) for color in ((0, 255, 0), (0, 0, 255))]
    assert columns[0][0] == columns[1][0] == 28 + 300 + 12
    assert len(columns[0]) == 50


def test_colour_bar_goes_below():
    rows = [[panel(300, 40, (255, 0, 0), "a")]]
    plain, with_bar = draw_sheet("Title", "one", rows), draw_sheet("Title", "one", rows, ColorBar("label", -0.5, 1))
    assert with_bar.height > plain.height
    assert with_bar.width == plain.width


def test_wrapping():
    panels = [panel(width, 10, (0, 0, 0)) for width in (100, 300, 200, 100, 50)]
    assert [len(row) for row in wrap(panels, max_width=700)] == [2, 2, 1]
    assert [len(row) for row in wrap(panels, max_width=10)] == [1] * 5


def test_panels_of_an_image_and_its_map_have_one_size():
    for rows, columns in ((4, 7), (30, 20), (300, 100)):
        image = image_panel(np.zeros((rows * 16, columns * 16, 3), np.uint8), (rows, columns))
        assert image.size == map_panel(np.zeros((rows, columns, 3), np.uint8)).size
        assert image.width % columns == image.height % rows == 0


def test_heat_gets_brighter():
    colors = heat(np.linspace(0, 1, 50), 0.2, 0.8).astype(int).sum(axis=-1)
    assert (np.diff(colors) >= 0).all()
    assert len(set(colors[:10])) == len(set(colors[-10:])) == 1
    assert np.isfinite(heat(np.ones((2, 2)), 1.0, 1.0)).all()


@pytest.mark.parametrize("text", ["short", "a" * 80, "folder/a-very-long-name-that-ends-in-0001.jpg", ""])
def test_shortened_names_fit_and_keep_their_ends(text):
    shortened = _shortened(text, 120, _font(12))
    assert _font(12).getlength(shortened) <= 120
    assert shortened[-4:] == text[-4:]
    assert shortened[:4] == text[:4]


def test_names_of_files_may_hold_anything():
    """A line break stopped the drawing ("raqm_layout() failed"), a byte that is no UTF-8 too."""
    names = ["two\nlines.jpg", "\udcff.jpg", "\x1b[31m.jpg", "\0.jpg", "tab\t.jpg", "\u202e.jpg"]
    sheets = [draw_sheet(f"Title of {name}", name, [[panel(300, 40, (255, 0, 0), name)]]) for name in names]
    assert len({sheet.height for sheet in sheets[1:]}) == 1
