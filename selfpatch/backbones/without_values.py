"""Networks without values, to ask for their shapes: in no memory, and in next to no time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What initializations call. On tensors without values torch computes some of them by its compiler's rules, whose import
# takes seconds.
_FILLS = {Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_}
_FILLS |= {nn.init.normal_, nn.init.uniform_, nn.init.constant_, nn.init.kaiming_uniform_}


class _FillNothing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Modules that are built inside have shapes and types, on the device "meta", and are not initialized."""
    with torch.device("meta"), _FillNothing():
        yield
