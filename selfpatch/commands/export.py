"""`selfpatch export`: a model as a file that others load."""

from pathlib import Path

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.export import export_timm
from selfpatch.metric_logger import say


def export(model: Path | str, out: Path | str, *, format: str = "timm") -> str:
    """Write a model for plain timm; prints and returns the line that loads it.

    Args:
        out: a .safetensors file, or a folder to put backbone.safetensors into.

    Raises:
        ValueError: an unknown format; a model that is not there or is none.
    """
    if format != "timm":
        raise ValueError(f"unknown format {format!r}; there is: timm")
    backbone = load_backbone(model)
    file = Path(out) if Path(out).suffix == ".safetensors" else Path(out) / "backbone.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    line = export_timm(backbone, file)
    for note in backbone.notes:
        say(note)
    say(f"import timm; backbone = {line}")
    return line
