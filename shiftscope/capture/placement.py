"""Where a model lives, and in which precision."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["device_of", "float_dtype"]


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
