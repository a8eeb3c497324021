"""Options of `selfpatch export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from selfpatch.cli.command import Command
from selfpatch.cli.options import Mean, Model, Network, NumChannels, NumHeads, Std


@dataclass(frozen=True)
class Export:
    """Write a model as a file or folder that other libraries load, and print the line that loads it."""

    model: Model
    out: Annotated[
        Positional[Path],
        arg(metavar="OUT", help="the folder to write to, or a file: .safetensors, .onnx, .pt2 or .pth, by the format"),
    ]
    # format to write: "timm" (.safetensors), "hf" (a folder for transformers' AutoModel), "onnx" (.onnx),
    # "torch-export" (.pt2, a program for torch.export.load), "dino" (.pth, for programs that read DINO's checkpoints)
    format: Literal["timm", "hf", "onnx", "torch-export", "dino"] = "timm"
    num_heads: NumHeads = None
    network: Network = None
    num_channels: NumChannels = None
    mean: Mean = None
    std: Std = None
    # folder of images, best those of the training: what tells a patch's row and column on them by linear regression is
    # removed from all tokens (RASA). The printed line then builds a model whose output, not its forward_features, has
    # position removed. None: tokens stay as they are
    remove_position: Path | None = None
    # write the linear head, too, that evaluate --keep-head left in MODEL: --format onnx then gives class scores per
    # patch, and says in the file what comes before and after
    with_head: bool = False


COMMAND = Command(
    "write a model for timm, transformers, ONNX, torch.export", lambda _: Export, "selfpatch.commands.export:export"
)
