"""Which tensors, and which forward passes, hold values that can be measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["is_plain", "samples_in"]


def is_plain(tensor: Any) -> bool:
    """A dense real float tensor that holds values."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and tensor.is_floating_point()
        and not tensor.is_meta
        and not tensor.is_nested
        and not tensor.is_quantized
        and tensor.numel() > 0
    )


def samples_in(args: Any, kwargs: Any) -> int:
    """Batch size: the first dimension of the first tensor that has one."""
    pending = [*args, *kwargs.values()]
    while pending:
        item = pending.pop(0)
        if isinstance(item, Tensor) and item.dim() > 0:
            return int(item.shape[0])
        if isinstance(item, dict):
            pending = [*item.values(), *pending]
        elif isinstance(item, list | tuple):
            pending = [*item, *pending]
    return 1
