"""`selfpatch export`: a model as a file or a folder that others load."""

from pathlib import Path

import torch
import yaml

from selfpatch.backbones.pretrained import load_backbone
from selfpatch.backbones.run_checkpoint import find_run_checkpoint, run_folder
from selfpatch.commands.callbacks.best_checkpoints import SCORES
from selfpatch.commands.remove_position import remove_position_from
from selfpatch.config.io import read_yaml, to_dict
from selfpatch.data.manifest import open_images
from selfpatch.errors import UserError, unknown_name, working
from selfpatch.evaluation.segmentation.kept_head import BACKBONE_FILE, SegmentationModel, find_head, read_head
from selfpatch.export.formats import FORMATS
from selfpatch.export.graph_file import export_onnx
from selfpatch.export.model_card import Training, write_card
from selfpatch.output.atomic_files import require_writable
from selfpatch.output.checkpoint import step_of
from selfpatch.output.metric_logger import read_metrics
from selfpatch.output.terminal import say
from selfpatch.pretraining.run_folder import RunFolder, result_affecting


def export(
    model: Path | str,
    out: Path | str,
    *,
    format: str = "timm",
    num_heads: int | None = None,
    network: str | None = None,
    num_channels: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    remove_position: Path | str | None = None,
    with_head: bool = False,
) -> str:
    """Write a model for another library; prints and returns the Python that loads it.

    Args:
        out: a folder, which gets a model card (README.md) too, or a file with the ending of the format.
        format: timm (.safetensors), hf (a folder for transformers' AutoModel), onnx (.onnx), torch-export (.pt2), or
            dino (.pth, for programs that read DINO's checkpoints).
        num_heads, network, num_channels, mean, std: of a checkpoint, as in `load_backbone`.
        remove_position: a folder of images; what tells a patch's position on them is removed from the tokens.
        with_head: `model` is the folder of `evaluate --keep-head`; write its linear head, too (onnx alone).

    Raises:
        UserError: an unknown format; a model that is not there or is none, or that the format cannot express.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    chosen, out = FORMATS[format], Path(out)
    if with_head:
        return export_segmenter(Path(model), chosen.place(out), format, changed=remove_position is not None)
    place = chosen.place(out)
    folder = place if chosen.file is None else place.parent
    require_writable(folder)
    backbone = load_backbone(model, num_heads=num_heads, network=network, num_channels=num_channels, mean=mean, std=std)
    if remove_position is not None:
        say(remove_position_from(backbone, open_images(remove_position, pixels=backbone.pixels)))
    with working():
        folder.mkdir(parents=True, exist_ok=True)
        line = chosen.write(backbone, place)
        for note in backbone.notes:
            say(note)
        if place != out or chosen.file is None:
            written = write_card(
                folder,
                backbone,
                load=line.replace(repr(str(place)), repr(place.name)),  # cards travel, paths of this machine do not
                library=chosen.library,
                model=str(model) if str(model).startswith("timm:") else Path(model).name,
                training=training_of(model),
            )
            say(str(folder / "README.md") if written else f"{folder / 'README.md'} is your own and stays as it is")
    say(line)
    return line


def export_segmenter(model: Path, path: Path, format: str, *, changed: bool) -> str:
    """Write a backbone with its linear head as ONNX; what is to be done before and after stands in the file.

    Raises:
        UserError: another format, another head or none, or position is to be removed, for which it was not trained.
    """
    if format != "onnx" or changed:
        given = "--remove-position, for which the head was not trained" if format == "onnx" else f"--format {format}"
        raise UserError(
            f"--with-head writes ONNX, of a model as it is; it was given with {given}: leave one of them out"
        )
    folder = find_head(model)
    kept = read_head(folder)
    if kept.task != "linear-segmentation":
        raise UserError(
            f"{folder} holds a head of {kept.task}; --with-head writes the one of linear-segmentation alone. Run this "
            "one by selfpatch predict"
        )
    require_writable(path.parent)
    backbone = load_backbone(folder / BACKBONE_FILE, pos_embed_interpolation=kept.pos_embed_interpolation)
    segmenter = SegmentationModel(backbone, folder, torch.device("cpu"))
    with working():
        path.parent.mkdir(parents=True, exist_ok=True)
        export_onnx(backbone, path, head=segmenter.module, metadata=segmenter.processing())
    for step in ("preprocessing", "postprocessing"):
        say(f"{step}: {segmenter.processing()[step]}")
    line = f"import onnxruntime; session = onnxruntime.InferenceSession({str(path)!r})"
    say(line)
    return line


def training_of(model: Path | str) -> Training | None:
    """Facts about the run that `model` names; None: it is none."""
    run = RunFolder(run_folder(model))
    if not run.config_file.is_file():
        return None
    config, found = read_yaml(run.config_file), find_run_checkpoint(model)
    lines = [line for line in read_metrics(run.metrics_file) if SCORES[0] in line]
    step = (
        step_of(found.path) if found else max((line["step"] for line in read_metrics(run.metrics_file)), default=None)
    )
    shown = [line for line in lines if line["step"] in (0, step)]
    settings = yaml.safe_dump(result_affecting(to_dict(config)), sort_keys=False)
    scores = [
        (line["step"], name, line[name]) for line in shown for name in SCORES if type(line.get(name)) in (int, float)
    ]
    return Training(config.recipe, step, run.read_images().get("num_images"), settings, scores)
