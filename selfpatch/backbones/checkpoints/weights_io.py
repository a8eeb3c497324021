"""Files of tensors, whoever wrote them: read without executing anything, and refused where they hold no weights."""

import json
import mmap
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.errors import UserError

# Training checkpoints nest their dictionaries three or four deep and hold some thousand tensors and numbers.
MAX_DEPTH, MAX_ENTRIES = 16, 1_000_000
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Of settings and counters beside weights. None of these is ever called or imported: an `Inert` stands in for each.
INERT = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "float64", "float32", "int64", "int32", "bool_")),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    "_codecs.encode",
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"pathlib.{local}{kind}Path" for local in ("", "_local.") for kind in ("", "Posix", "Windows", "PurePosix")),
    *(f"builtins.{kind}" for kind in ("dict", "list", "tuple", "int", "float", "str", "bool")),
    "datetime.datetime",
    "datetime.timedelta",
    "typing.Any",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
)
# Dictionaries with more abilities, read as ordered ones.
MAPPINGS = (
    "easydict.EasyDict",
    "yacs.config.CfgNode",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)


class Inert(dict):
    """Stands in for an object of a class that is not loaded: keeps what it held by name, and executes nothing."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


def _default_dict(*_: Any) -> OrderedDict:
    """A defaultdict, without the function that makes its defaults."""
    return OrderedDict()


class Checkpoint(NamedTuple):
    """The tensors of a file, by dotted names, and what else it holds at its top."""

    tensors: dict[str, Tensor]
    values: dict[str, Any] = {}  # noqa: RUF012


def read_metadata(file: Path) -> dict[str, str]:
    """
    Raises:
        UserError: a damaged safetensors file.
    """
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, "pt") as content:
            return content.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{file} is damaged or no safetensors file: {error}; copy or export it again") from error


def read_checkpoint(file: Path) -> Checkpoint:
    """All tensors of a file, or of the files that an index names; those of nested dictionaries under dotted names.

    Raises:
        UserError: damaged, of another kind, or with more in it than tensors and plain values.
    """
    if file.suffix == ".json":
        return _read_shards(file)
    if file.suffix == ".safetensors":
        read_metadata(file)  # refuses what is damaged
        return Checkpoint(load_file(file))
    _refuse_bombs(file)
    inert: list[Any] = [(Inert, name) for name in INERT] + [(OrderedDict, name) for name in MAPPINGS]
    inert += [(_default_dict, "collections.defaultdict")]
    with file.open("rb") as stream, torch.serialization.safe_globals(inert):
        try:
            checkpoint = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes make the reader raise nearly anything
            raise UserError(_refusal(file, error)) from error
    values = {str(name): value for name, value in checkpoint.items()} if isinstance(checkpoint, dict) else {}
    return Checkpoint(_flatten(file, checkpoint), values)


def _refuse_bombs(file: Path) -> None:
    """Refuse what takes far more memory than the file is long.

    Raises:
        UserError: an archive with a compressed member, or with members that overlap, or a call of bytearray, which
            torch permits with any length; a TorchScript archive, whose members are compressed too.
    """
    if file.stat().st_size == 0:
        return
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"\nbytearray\n") >= 0:
            raise UserError(_refusal(file, ValueError("GLOBAL builtins.bytearray")))
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(_refusal(file, error)) from error
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise UserError(_refusal(file, ValueError("TorchScript")))
    is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not is_stored or sum(member.file_size for member in members) > file.stat().st_size:
        raise UserError(
            f"{file} is no checkpoint that can be read safely: its tensors are compressed, which torch.save never "
            "does; save the state_dict of the network again"
        )


def check_weights(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what has the name and shape of weights and is none.

    Raises:
        UserError: tensors without numbers of their own, of whole numbers, or with numbers that are not finite.
    """
    for name, tensor in tensors.items():
        is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in FLOATS
        # A few numbers can be spread over any shape; a file of some bytes would take all memory.
        if not is_dense or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise UserError(
                f"{file} holds no weights in {name}: a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}; "
                "floating-point numbers of 16 to 64 bits, one for each place, are needed: save the state_dict of the "
                "network again, and of a quantized one before it was quantized"
            )
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        more = ", ..." if len(broken) > 3 else ""
        raise UserError(
            f"{file} has numbers that are not finite in {len(broken)} of {len(tensors)} tensors: "
            f"{', '.join(broken[:3])}{more}; such weights are those of a run that diverged: take an earlier checkpoint"
        )


def _refusal(file: Path, error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return (
            f"{file} is no checkpoint that can be read safely: it is a TorchScript archive, whose code is never "
            "executed. Where you trust it, write its weights to a file of their own: safetensors.torch.save_file(dict("
            "torch.jit.load(FILE).state_dict()), 'weights.safetensors')"
        )
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"{file} is no checkpoint that can be read safely: it holds {found[1]}, more than tensors and plain "
            "values, which is never executed. Where you trust it, write its weights to a file of their own: "
            "state = torch.load(FILE, weights_only=False); safetensors.torch.save_file({name: tensor.contiguous() for "
            "name, tensor in state['state_dict'].items()}, 'weights.safetensors'), with the key that yours has"
        )
    return (
        f"{file} is no checkpoint that can be read safely: it is damaged, of another kind, or holds more than tensors "
        f"and plain values, which is never executed ({type(error).__name__}); copy it again, or save the state_dict of "
        "the network as safetensors"
    )


def _read_shards(index: Path) -> Checkpoint:
    """
    Raises:
        UserError: an index that names no files beside it.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise UserError(f"files {names}")
        files = [index.parent / name for name in names]
        if missing := [file.name for file in files if not file.is_file() or file.suffix == ".json"]:
            raise UserError(f"{', '.join(missing)} is not there")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError) as error:
        raise UserError(
            f"{index} is no index of files of weights beside it ({error}); copy the whole folder"
        ) from error
    return Checkpoint({name: tensor for file in files for name, tensor in read_checkpoint(file).tensors.items()})


def _flatten(file: Path, tree: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    pending, num_entries = [("", tree, 0)], 0
    while pending:
        prefix, value, depth = pending.pop()
        num_entries += 1
        # A dictionary may contain itself.
        if depth > MAX_DEPTH or num_entries > MAX_ENTRIES:
            raise UserError(
                f"{file} nests dictionaries more than {MAX_DEPTH} deep or has more than {MAX_ENTRIES:,} entries; no "
                "checkpoint does: save the state_dict of the network alone"
            )
        if isinstance(value, Tensor):
            tensors[prefix.removesuffix(".")] = value
        elif isinstance(value, dict):
            pending += [(f"{prefix}{name}.", child, depth + 1) for name, child in reversed(value.items())]
    return tensors
