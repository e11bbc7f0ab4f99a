"""Where a model lives, and in which precision; moving it, or a tensor, to another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["device_of", "existing", "float_dtype", "in_precision", "place"]


def existing(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that exist: those of a lazy module do not before its first call."""
    return [p for p in model.parameters() if not isinstance(p, nn.UninitializedParameter)]


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU where there is none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def place(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Move a module, in place; None leaves device or precision alone.

    Args:
        module: The module.
        device: Where to.
        dtype: Real precision. ``Module.to`` would drop imaginary parts: here complex tensors take
            the complex type of that precision.
    """
    if device is not None:
        module.to(device)
    if dtype is not None:
        module._apply(lambda tensor: in_precision(tensor, dtype))


def in_precision(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating or complex tensor in another precision, any other as it is."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def float_dtype(model: nn.Module) -> torch.dtype | None:
    """Precision of the first floating parameter; None where there is none."""
    for tensor in model.parameters():
        if tensor.is_floating_point():
            return tensor.dtype
    return None
