"""torch's compiler is imported when something is compiled, and not by timm, torchvision and AdamW before that.

`import torch._dynamo` takes as long as torch itself: a third of the time before the first step of a small run. timm and
torchvision import it for two functions that nobody here calls, and an optimizer to tell the compiler to leave it alone.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

_COMPILER_MODULE = "torch._dynamo.utils"


@contextmanager
def compiler_when_needed() -> Iterator[None]:
    """Modules imported inside get the compiler's functions when they call them; a compiler that is there stays.

    A torch without the function that this stands on imports its compiler at once, as it would.
    """
    if "torch._dynamo" in sys.modules or not hasattr(torch, "_disable_dynamo"):
        yield
        return
    placeholder, disable = _Placeholder(_COMPILER_MODULE), torch.compiler.disable
    sys.modules[_COMPILER_MODULE] = placeholder
    torch.compiler.disable = _disable_later
    try:
        yield
    finally:
        torch.compiler.disable = disable
        placeholder.leave()


class _Placeholder(ModuleType):
    """Stands for the compiler's module until something of it but this one function is wanted."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        return import_module(_COMPILER_MODULE).is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.leave()
        return getattr(import_module(_COMPILER_MODULE), name)

    def leave(self) -> None:
        if sys.modules.get(_COMPILER_MODULE) is self:
            del sys.modules[_COMPILER_MODULE]


def _disable_later(function: Any = None, recursive: bool = True, **_: Any) -> Any:
    """`torch.compiler.disable` as torch has it for itself: the compiler is imported by the first call."""
    return torch._disable_dynamo(function, recursive)


def _eager(method: Callable[..., Any]) -> Any:
    return inspect.unwrap(method)


class AdamW(torch.optim.AdamW):
    """torch's AdamW without what its methods do for a compiler: no optimizer is compiled here."""

    add_param_group = _eager(torch.optim.AdamW.add_param_group)
    load_state_dict = _eager(torch.optim.AdamW.load_state_dict)
    state_dict = _eager(torch.optim.AdamW.state_dict)
    zero_grad = _eager(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(_eager(torch.optim.AdamW.step))


with compiler_when_needed():
    import timm as timm
