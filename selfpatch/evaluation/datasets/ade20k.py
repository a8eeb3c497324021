"""ADE20K as SceneParse150 (ADEChallengeData2016): 150 classes, label 0 is everything else."""

from pathlib import Path

from selfpatch.errors import UserError
from selfpatch.evaluation.datasets.images_and_masks import read_folders
from selfpatch.evaluation.datasets.labeled_images import Layout, incomplete_split_notes

LAYOUT = (
    "images/{training,validation}/NAME.jpg  annotations/{training,validation}/NAME.png  "
    "(ADE20K: 1, 2, ...; 0 = not scored)"
)
OFFICIAL = {"training": 20_210, "validation": 2_000}


def find(root: Path) -> Path | None:
    """COCO has annotations/ too, but keeps its images elsewhere."""
    for folder in (root / "ADEChallengeData2016", root):
        if (folder / "images").is_dir() and (folder / "annotations").is_dir():
            return folder
    if next(root.glob("index_ade20k.*"), None) or (root / "images" / "ADE").is_dir():
        raise UserError(
            f"{root} holds the full ADE20K, whose masks are color pictures of 3,688 names; segmentation is scored on "
            "its 150 classes: take ADEChallengeData2016.zip of the page 'MIT Scene Parsing Benchmark'"
        )
    return None


def read(root: Path, *, layouts: str) -> Layout:
    """Label 0 is not scored and label k is class k - 1; classes.txt or objectInfo150.txt names them."""
    layout = read_folders(root, root / "annotations", first_label=1, layouts=layouts)
    # Other data sets borrow the layout; this file is the original's.
    if not (root / "objectInfo150.txt").is_file():
        return layout
    found = {"training": len(layout.train), "validation": len(layout.val)}
    return layout._replace(notes=incomplete_split_notes("ADE20K (SceneParse150)", OFFICIAL, found))
