"""The sections of a page that show pictures: those of each step with a slider, and patches to click on."""

from pathlib import Path

from selfpatch.visualization.report.blocks import Block, Section
from selfpatch.visualization.report.earlier_pictures import (
    MAX_PAGE_BYTES,
    Frame,
    data_uri,
    fitting,
    frames_of_folder,
    frames_of_run,
)
from selfpatch.visualization.report.similarities import SIMILARITIES, read_similarities

# What is in a picture, by the start of its name: a tab, and words for those who do not see it.
KNOWN = {
    "pca": ("PCA of patches", "Patch tokens as colors: equal colors mean similar patches, across images as well"),
    "positives": ("Positives", "Chosen patches in yellow, and the neighbors picked as their positives in green"),
    "predictions": ("Predictions", "Images, their true masks and the predicted ones side by side"),
    "similarity": ("Similarity", "Similarity of every patch to a framed one"),
    "attention": ("Attention", "Attention of the class token to the patches, head by head"),
    "detections": ("Detections", "Images with true and found objects"),
    "objects": ("Objects", "The object that was found in each image"),
    "confusion_matrix": ("Confusion", "How often images of each class were taken for each other"),
    "nearest_images": ("Nearest images", "Images beside the ones that are most similar to them"),
}  # fmt: skip
ORDER = list(KNOWN)


def pictures_and_similarity(pictures: Path) -> tuple[list[Section], dict[str, str]]:
    """Of a run: what its patches see, step by step, and assets of these sections."""
    found = read_similarities(pictures / SIMILARITIES)
    assets: dict[str, str] = {}
    clickable: list[Section] = []
    if found is not None:
        assets["pairs"] = found["pairs"]
        images = []
        for i, image in enumerate(found["images"]):
            assets[f"similarity-{i}"] = image["picture"]
            images.append(
                {
                    "name": str(image["name"]), "rows": int(image["rows"]), "columns": int(image["columns"]),
                    "asset": f"similarity-{i}",
                }
            )  # fmt: skip
        block: Block = {"kind": "similarity", "images": images, "pairs": "pairs", "low": found["low"]}
        clickable = [
            Section(
                "Similarity, patch by patch",
                [block],
                "Click a patch: bright patches are similar to it, in all images. Arrow keys move the patch.",
            )
        ]
    room = MAX_PAGE_BYTES - sum(map(len, assets.values()))
    shown, more = pictures_section(frames_of_run(pictures) or frames_of_folder(pictures), room)
    return [*shown, *clickable], assets | more


def pictures_section(
    frames: dict[str, list[Frame]], room: int = MAX_PAGE_BYTES, title: str = "Pictures", *, prefix: str = "picture"
) -> tuple[list[Section], dict[str, str]]:
    """
    Args:
        frames: by name of the picture.
        room: characters of base64 that all of them may take.
        prefix: of the names of the assets.
    """
    kept = fitting({name: frames[name] for name in sorted(frames, key=_place)}, room)
    if not kept:
        return [], {}
    assets, pictures = {}, []
    for name, found in kept.items():
        shown = []
        for frame in found:
            asset = f"{prefix}-{len(assets)}"
            assets[asset] = data_uri(frame.jpeg)
            shown.append({"step": frame.step, "asset": asset, "width": frame.width, "height": frame.height})
        label, alt = _words(name)
        pictures.append({"name": name, "label": label, "alt": alt, "frames": shown})
    has_steps = any(len(found) > 1 for found in kept.values())
    lead = "Move the slider through the steps at which they were drawn." if has_steps else ""
    return [Section(title, [{"kind": "pictures", "pictures": pictures}], lead)], assets


def _kind(name: str) -> tuple[str, str]:
    """Of a picture's name that which is known, and the rest: a number, or the folder it is in."""
    last = name.rpartition("/")[2]
    known = max((start for start in KNOWN if last.startswith(start)), key=len, default="")
    return known, name.replace(known, "", 1).strip("_/").replace("/", " ") if known else name


def _place(name: str) -> tuple[int, str]:
    known, _ = _kind(name)
    return (ORDER.index(known) if known else len(ORDER), name)


def _words(name: str) -> tuple[str, str]:
    known, rest = _kind(name)
    if not known:
        return name.replace("_", " "), ""
    label, alt = KNOWN[known]
    return f"{label} {rest.replace('_', ' ')}".strip(), alt
