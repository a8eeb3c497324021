"""The table of export formats: the file that each writes, and the line of Python that loads it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from selfpatch.backbones.backbone import Backbone
from selfpatch.errors import UserError
from selfpatch.export.graph_file import export_onnx, export_program
from selfpatch.export.huggingface import export_huggingface
from selfpatch.export.original_checkpoint import export_original
from selfpatch.export.timm_file import export_timm


class Format(NamedTuple):
    """How one format is written.

    Args:
        file: its name in a folder, with the ending that a file of it must have; None: it is a folder.
        write: writes it and returns the Python that loads it.
        library: which of Hugging Face's library names reads it, for the model card.
    """

    file: str | None
    write: Callable[[Backbone, Path], str]
    library: str

    def place(self, out: Path) -> Path:
        """Where `out`, a folder or a file, has it.

        Raises:
            UserError: `out` ends like a file of another format.
        """
        if self.file is None or out.suffix != Path(self.file).suffix:
            endings = {Path(other.file).suffix: name for name, other in FORMATS.items() if other.file}
            if out.suffix in endings and not out.is_dir():
                raise UserError(
                    f"{out} ends in {out.suffix}, as files of --format {endings[out.suffix]} do; give a folder, or a "
                    f"file of the format that is asked for ({self.file or 'which is a folder'})"
                )
            return out if self.file is None else out / self.file
        return out


def _write_timm(backbone: Backbone, path: Path) -> str:
    return f"import timm; backbone = {export_timm(backbone, path)}"


def _write_huggingface(backbone: Backbone, path: Path) -> str:
    return f"from transformers import AutoModel; backbone = {export_huggingface(backbone, path)}"


def _write_onnx(backbone: Backbone, path: Path) -> str:
    export_onnx(backbone, path)
    return f"import onnxruntime; session = onnxruntime.InferenceSession({str(path)!r})"


def _write_program(backbone: Backbone, path: Path) -> str:
    export_program(backbone, path)
    return f"import torch; backbone = torch.export.load({str(path)!r}).module()"


def _write_original(backbone: Backbone, path: Path) -> str:
    export_original(backbone, path)
    return f"import torch; tensors = torch.load({str(path)!r}, weights_only=True)['teacher']"


FORMATS = {
    "timm": Format("backbone.safetensors", _write_timm, "timm"),
    "hf": Format(None, _write_huggingface, "transformers"),
    "onnx": Format("backbone.onnx", _write_onnx, "onnx"),
    "torch-export": Format("backbone.pt2", _write_program, "pytorch"),
    "dino": Format("checkpoint.pth", _write_original, "pytorch"),
}
