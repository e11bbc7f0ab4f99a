"""Which tensors, and which forward passes, hold values that can be measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["first_tensor", "is_empty", "is_plain", "is_traced", "may_be_signal", "why_not_plain"]

_VALUELESS = ("torch._subclasses", "torch.fx")
"""Homes of fake and functional tensors, and of the proxies of a symbolic trace."""


def is_plain(tensor: Any) -> bool:
    """A dense real float tensor that holds values."""
    return _is_dense(tensor) and tensor.numel() > 0


def is_empty(tensor: Any, dim: int) -> bool:
    """Whether a tensor would be a plain one, had it any row.

    Args:
        tensor: The tensor.
        dim: Dimension of its neurons.
    """
    if not _is_dense(tensor) or tensor.dim() == 0 or tensor.numel():
        return False
    return bool(tensor.shape[dim] > 0)


def _is_dense(tensor: Any) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and tensor.is_floating_point()
        and not tensor.is_meta
        and not tensor.is_nested
        and not tensor.is_quantized
        and not _is_valueless(tensor)
    )


def may_be_signal(tensor: Tensor) -> bool:
    """Whether an activation of it is one of neurons: not of single or of whole numbers."""
    return tensor.dim() > 0 and (tensor.is_floating_point() or tensor.is_complex())


def why_not_plain(tensor: Tensor) -> str:
    """What :func:`is_plain` has against a tensor, as the reason of a gap."""
    if tensor.is_complex():
        return "complex numbers: their means and variances are not defined here"
    if tensor.is_nested:
        return "nested tensors: their rows differ in length"
    if tensor.layout is not torch.strided:
        return "sparse tensors are not measured"
    if not tensor.is_meta and not tensor.numel():
        return "called with tensors of width zero only"
    return f"tensors of kind {tensor.dtype} on {tensor.device} hold no values to measure"


def is_traced(first: Any) -> bool:
    """Whether a forward pass that begins is run for its graph or its shapes, not its values.

    Other dispatch modes (a counter of operations, the user's own) do not matter.

    Args:
        first: The first tensor it is given, as :func:`first_tensor` finds it.
    """
    for place in range(torch._C._len_torch_dispatch_stack()):
        # What fake tensors, proxies and functionalisation put on the stack has a key, nothing else.
        if getattr(torch._C._get_dispatch_stack_at(place), "_mode_key", None) is not None:
            return True
    if torch._C._is_tracing() or torch.compiler.is_compiling():
        return True
    return first is not None and (_is_valueless(first) or first.is_meta)


def first_tensor(args: Any, kwargs: Any) -> Any:
    """The first tensor (or stand-in for one) with a dimension in the arguments of a call."""
    pending = [*args, *kwargs.values()]
    while pending:
        item = pending.pop(0)
        if _is_valueless(item) or (isinstance(item, Tensor) and item.dim() > 0):
            return item
        if isinstance(item, dict):
            pending = [*item.values(), *pending]
        elif isinstance(item, list | tuple):
            pending = [*item, *pending]
    return None


def _is_valueless(item: Any) -> bool:
    return type(item) is not Tensor and type(item).__module__.startswith(_VALUELESS)
