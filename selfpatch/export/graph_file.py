"""The network as a file with a graph in it: ONNX, or torch.export's own format, checked on images of two sizes.

Input "images" [B, C, H, W], normalized; any B, any H and W in whole patches, two at least. Outputs "patch_tokens"
[B, N, D], row-major, and "cls_token" [B, D] if there is one.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfpatch.backbones.backbone import Backbone
from selfpatch.errors import RunFailedError, UserError
from selfpatch.export.dynamic_size import TokensOfImages, trace
from selfpatch.output.atomic_files import atomic_write
from selfpatch.output.versions import installed_version

# (images, rows and columns of patches) on which a file has to give the backbone's tokens, and how nearly.
CHECKED_SIZES = ((1, 4, 4), (2, 3, 7))
TOLERANCE = 1e-4
MAX_ONNX_BYTES = 2**31 - 2**26  # of a protocol buffer, with room for the graph


def export_onnx(
    backbone: Backbone, path: Path, *, head: nn.Module | None = None, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `path`, and compare it with the backbone in ONNX Runtime.

    Args:
        head: of a map of patch tokens; the graph then has one output, "logits" [B, C, R, S], one place per patch.
        metadata: is written into the file besides.

    Raises:
        UserError: onnx, onnxscript or onnxruntime is not installed.
        RunFailedError: the file gives other tokens; it is not written then.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch writes ONNX with it
    except ImportError as error:
        raise UserError(
            f"export to ONNX needs {error.name}, which is not installed: pip install 'selfpatch[onnx]', or choose "
            "another format: timm, hf, torch-export"
        ) from error
    size = sum(tensor.nbytes for tensor in backbone.model.state_dict().values())
    if size > MAX_ONNX_BYTES:
        raise UserError(
            f"an ONNX file holds at most 2 GB, and this {backbone.architecture.name} has {size / 1e9:.1f} GB of "
            "weights; choose another format: timm, hf, torch-export"
        )
    network = TokensOfImages(backbone, head)
    with quiet():
        program = torch.onnx.export(
            trace(network), input_names=["images"], output_names=network.output_names, dynamo=True, verbose=False
        )
    assert program is not None
    model = program.model_proto
    _name_sizes(model)
    onnx.helper.set_model_props(model, description(backbone) | dict(metadata or {}))
    with atomic_write(path) as temporary:
        onnx.save(model, temporary)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        check(network, lambda images: [torch.from_numpy(out) for out in session.run(None, {"images": images.numpy()})])


def export_program(backbone: Backbone, path: Path) -> None:
    """Write `path` for `torch.export.load(path).module()`, and compare it with the backbone.

    Raises:
        RunFailedError: the file gives other tokens; it is not written then.
    """
    network, content = TokensOfImages(backbone), io.BytesIO()
    with quiet():
        torch.export.save(trace(network), content, extra_files={"description.json": json.dumps(description(backbone))})
    content.seek(0)
    check(network, torch.export.load(content).module())
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def check(network: TokensOfImages, run: Callable[[Tensor], list[Tensor] | tuple[Tensor, ...]]) -> None:
    """
    Raises:
        RunFailedError: on images of some size the outputs differ from the network's by more than TOLERANCE.
    """
    for batch, rows, columns in CHECKED_SIZES:
        images = network.example(batch, rows, columns)
        with torch.no_grad():
            expected = network(images)
        outputs = run(images)
        for name, ours, theirs in zip(network.output_names, expected, outputs, strict=True):
            furthest = (ours - theirs).abs().max().item() / max(ours.abs().max().item(), 1.0)
            if not furthest <= TOLERANCE:
                raise RunFailedError(
                    f"the exported graph gives other {name} than the backbone for images of {rows} x {columns} "
                    f"patches: they differ by {furthest:.1e} of the largest. Choose another format (timm, hf)"
                )


def description(backbone: Backbone) -> dict[str, str]:
    """All that who runs the file has to know beside its input and outputs."""
    return {
        "architecture": backbone.architecture.name,
        "patch_size": json.dumps(backbone.patch_size),
        "mean": json.dumps(backbone.mean),
        "std": json.dumps(backbone.std),
        "selfpatch_version": installed_version("selfpatch"),
    }


def _name_sizes(model: Any) -> None:
    """Readable names of the sizes that vary."""
    sizes = {
        "images": {0: "batch", 2: "height", 3: "width"},
        "patch_tokens": {0: "batch", 1: "patches"},
        "logits": {0: "batch", 2: "rows", 3: "columns"},
    }
    for value in (*model.graph.input, *model.graph.output):
        for index, name in sizes.get(value.name, {0: "batch"}).items():
            value.type.tensor_type.shape.dim[index].dim_param = name


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch tells developers of its exporters."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
