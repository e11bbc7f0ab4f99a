"""Where a model lives, and in which precision."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["device_of", "existing", "float_dtype"]


def existing(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that exist: those of a lazy module do not before its first call."""
    return [p for p in model.parameters() if not isinstance(p, nn.UninitializedParameter)]


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU where there is none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def float_dtype(model: nn.Module) -> torch.dtype | None:
    """Precision of the first floating parameter; None where there is none."""
    for tensor in model.parameters():
        if tensor.is_floating_point():
            return tensor.dtype
    return None
