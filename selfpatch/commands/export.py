"""`selfpatch export`: a model as a file that others load."""

from pathlib import Path

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.commands.remove_position import remove_position_from
from selfpatch.data.image_folder import ImageFolder
from selfpatch.errors import UserError, working
from selfpatch.export import export_timm
from selfpatch.output.atomic_files import require_writable
from selfpatch.output.progress import say


def export(
    model: Path | str,
    out: Path | str,
    *,
    format: str = "timm",
    num_heads: int | None = None,
    network: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    remove_position: Path | str | None = None,
) -> str:
    """Write a model for plain timm; prints and returns the line that loads it.

    Args:
        out: a .safetensors file, or a folder to put backbone.safetensors into.
        num_heads, network, mean, std: of a checkpoint, as in `load_backbone`.
        remove_position: a folder of images; what tells a patch's position on them is removed from the tokens.

    Raises:
        UserError: an unknown format; a model that is not there or is none.
    """
    if format != "timm":
        raise UserError(f"unknown format {format!r}; there is: timm")
    file = Path(out) if Path(out).suffix == ".safetensors" else Path(out) / "backbone.safetensors"
    require_writable(file.parent)
    backbone = load_backbone(model, num_heads=num_heads, network=network, mean=mean, std=std)
    if remove_position is not None:
        say(remove_position_from(backbone, ImageFolder(Path(remove_position))))
    file.parent.mkdir(parents=True, exist_ok=True)
    with working():
        line = export_timm(backbone, file)
    for note in backbone.notes:
        say(note)
    say(f"import timm; backbone = {line}")
    return line
