"""README.md beside an exported model: how to load it, how images go in, how it was trained and what it scored."""

from pathlib import Path
from typing import NamedTuple

from selfpatch.backbones.backbone import Backbone
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.text_files import code_block, code_span
from selfpatch.output.versions import installed_version

# A card without this line is somebody's own.
MARK = "<!-- Written by `selfpatch export`, and again by the next one; remove this line to keep your changes. -->"


class Training(NamedTuple):
    """How a model was trained, as far as its run says.

    Args:
        settings: in YAML, those that change results.
        scores: (step, name, value) of every score on the way that is to be shown.
    """

    recipe: str
    step: int | None
    num_images: int | None
    settings: str
    scores: list[tuple[int, str, float]]


def write_card(
    folder: Path, backbone: Backbone, *, load: str, library: str, model: str, training: Training | None
) -> bool:
    """Write README.md; False if there is one of the user's own, which stays."""
    path = folder / "README.md"
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return False
    with atomic_write(path) as file:
        file.write_text(card(backbone, load=load, library=library, model=model, training=training), encoding="utf-8")
    return True


def card(backbone: Backbone, *, load: str, library: str, model: str, training: Training | None) -> str:
    height, width = backbone.image_size
    rows, columns = backbone.patch_size
    millions = sum(parameter.numel() for parameter in backbone.model.parameters()) / 1e6
    class_token = "one class token and " if backbone.has_cls_token else ""
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: image-feature-extraction",
        "tags: [self-supervised-learning, vision-transformer, dense-features]",
        "# license: yours to choose; weights may be bound by that of the images and of the weights they started from",
        "---",
        MARK,
        "",
        f"# {backbone.architecture.name}: dense image features",
        "",
        f"{millions:.1f} M parameters, {backbone.embed_dim} wide: {class_token}one token per patch of {rows} x "
        f"{columns} pixels. Exported from {code_span(model)} by selfpatch {installed_version('selfpatch')}.",
        "",
        # The import, and the line that loads it: a name may hold a semicolon too.
        code_block("\n".join(load.split("; ", 1)), "python"),
        "",
        "## Images",
        "",
        f"Trained at {height} x {width} pixels; other sizes in whole patches work. "
        f"{_values(backbone)}, then, by channel:",
        "",
        f"    mean {list(backbone.mean)}",
        f"    std  {list(backbone.std)}",
        "",
        "## Training",
        "",
    ]
    if training is None:
        lines.append(f"The weights are those of {code_span(model)}; how they were trained is not known here.")
    else:
        images = "images of your own" if training.num_images is None else f"{training.num_images:,} unlabeled images"
        steps = "" if training.step is None else f", {training.step:,} steps"
        lines += [
            f"Recipe {code_span(training.recipe)} on {images}{steps}. Describe the images here: source, domain, "
            "license.",
            "",
        ]
        lines += [
            "<details><summary>Settings</summary>",
            "",
            code_block(training.settings.strip(), "yaml"),
            "",
            "</details>",
        ]
        if training.scores:
            lines += ["", "## Scores", "", "On the labeled images of the run, frozen features:", ""]
            lines += ["| step | metric | % |", "|---|---|---|"]
            lines += [f"| {step} | {name} | {100 * value:.1f} |" for step, name, value in training.scores]
    lines += ["", "## License", "", "Not stated; yours to choose.", ""]
    return "\n".join(lines)


def _values(backbone: Backbone) -> str:
    pixels = backbone.pixels
    if pixels.value_range is None:
        return "Values in [0, 1]"
    low, high = pixels.value_range
    return f"Values in [0, 1] (stored {low:g} is 0, {high:g} is 1, beyond is clipped)"
