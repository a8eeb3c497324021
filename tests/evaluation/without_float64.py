"""A GPU that has no float64, as Apple's: what is computed there in float64 is refused."""

import torch


class WithoutFloat64(torch.Tensor):
    """`tensor.as_subclass(WithoutFloat64)` is on it, and what is computed of it, until `cpu()`."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, cls):
            if func is torch.Tensor.cpu:
                return result.as_subclass(torch.Tensor)
            if result.dtype == torch.float64:
                raise TypeError("this device does not support float64")
        return result
