r"""The maps of :mod:`shiftscope.fix.subspace` for the ones direction, where every step costs most.

With ``n = 1/√m`` the basis of the hyperplane ``Σ w = 0`` and its transpose read

.. math::
    (Bv)_{k+1} = v_k - \frac{\sum v}{m + \sqrt m}, \quad (Bv)_1 = -\sum_k (Bv)_{k+1}, \qquad
    (B^\top w)_k = w_{k+1} - \frac{\sum w + \sqrt m\, w_1}{m + \sqrt m}

Each has three forms: compiled code that reads a CPU tensor once (``_rows.c``, optional); torch
operations that spare temporaries; and torch operations that anything may trace or differentiate.
The first entry closes the sum of the others as rounded, so that rows sum to zero whatever ``v`` is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.forward_ad import unpack_dual

try:
    from shiftscope.fix import _zerosum
except ImportError:  # no compiler where shiftscope was installed
    _zerosum = None  # type: ignore[assignment]

__all__ = ["HALVES", "built", "coordinates", "embed", "lean", "project", "wide"]

HALVES = (torch.float16, torch.bfloat16)
_PLAIN = (torch.nn.Parameter, Tensor)
_DTYPES = (torch.float32, torch.float64)
"""By the number the compiled part knows them by."""
_CACHE = 2**19
"""Bytes of a piece that lies, with what is made of it, in the second-level cache of one core."""
_MANY = 8
"""Fewer pieces than this cost more calls than they save memory traffic."""


def built() -> bool:
    """Whether the compiled part is there."""
    return _zerosum is not None


def embed(v: Tensor) -> Tensor:
    """Return ``Bv``, shape ``(..., m)``, for coordinates of shape ``(..., m − 1)``."""
    return lean(_Embed, _embed, v)


def coordinates(w: Tensor) -> Tensor:
    """Return ``Bᵀw``, shape ``(..., m − 1)``, for vectors of shape ``(..., m)``."""
    full = wide(w)
    first, rest = full.tensor_split((1,), -1)  # one call, for two indexings
    m = w.shape[-1]
    total = full.sum(-1, keepdim=True).add_(first, alpha=math.sqrt(m))
    v = torch.sub(rest, total, alpha=_weight(m))
    return v if full is w else v.to(w.dtype)


def project(w: Tensor) -> Tensor:
    """Return ``w − mean(w)``, centred twice, shape ``(..., m)``."""
    return lean(_Project, _project, w)


def lean(function: type[Function], plain: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Apply the lean form in eager mode, plain operations wherever something traces them."""
    if (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
    ):
        return plain(*arguments)
    result: Tensor = function.apply(*arguments)
    return result


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is of half precision."""
    return x.float() if x.dtype in HALVES else x


# -- operations that anything may trace or differentiate ------------------------------------------


def _embed(v: Tensor) -> Tensor:
    full = wide(v)
    rest = full - full.sum(-1, keepdim=True) * _weight(v.shape[-1] + 1)
    return torch.cat((-rest.sum(-1, keepdim=True), rest), -1).to(v.dtype)


def _project(w: Tensor) -> Tensor:
    return _centred(_centred(wide(w))).to(w.dtype)


def _centred(w: Tensor) -> Tensor:
    return w - w.mean(-1, keepdim=True)


def _weight(m: int) -> float:
    return 1 / (m + math.sqrt(m))


# -- in eager mode --------------------------------------------------------------------------------


def _embed_in_place(v: Tensor) -> Tensor:
    """Write straight into the result, without a temporary."""
    w = v.new_empty((*v.shape[:-1], v.shape[-1] + 1))
    first, rest = w.tensor_split((1,), -1)
    weight = _weight(w.shape[-1])
    large = v.nbytes >= _MANY * _CACHE
    for part, head, tail in _pieces(v, first, rest) if large else ((v, first, rest),):
        torch.sub(part, part.sum(-1, keepdim=True), alpha=weight, out=tail)
        # −Σ tail equals −t, and closes the sum to its own rounding whatever v is
        torch.sum(tail, -1, keepdim=True, out=head)
    first.neg_()
    return w


def _pieces(v: Tensor, first: Tensor, rest: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Cut along the first dimension, so that main memory is read and written once on the CPU."""
    piece = _CACHE * torch.get_num_threads()
    if v.nbytes < _MANY * piece or v.ndim < 2 or not v.is_cpu:
        return ((v, first, rest),)
    rows = max(1, v.shape[0] * piece // v.nbytes)
    return zip(v.split(rows), first.split(rows), rest.split(rows), strict=True)


def _project_in_place(w: Tensor) -> Tensor:
    once = _centred(w)
    return once.sub_(once.mean(-1, keepdim=True))


def _compiled(name: str, x: Tensor, longer: int) -> Tensor | None:
    """Map the rows of a tensor by compiled code.

    Args:
        name: ``embed``, ``coordinates`` or ``project``.
        x: Shape ``(..., width)``.
        longer: Elements that a row of the result has more.

    Returns:
        Shape ``(..., width + longer)``; None for a tensor that must be mapped otherwise.
    """
    if not _readable(x) or x.shape[-1] + longer < 1:
        return None
    try:
        address = x.data_ptr()
    except RuntimeError:  # a batch of gradients
        return None
    *outer, width = x.shape
    result = x.new_empty(*outer, width + longer)
    getattr(_zerosum, name)(
        address, result.data_ptr(), _DTYPES.index(x.dtype), x.numel() // width,
        width + max(longer, 0), torch.get_num_threads(),
    )  # fmt: skip
    return result


def _readable(x: Tensor) -> bool:
    """Whether the numbers lie densely where ``data_ptr`` says, and nothing watches operations."""
    return (
        _zerosum is not None
        and x.is_cpu
        and x.dtype in _DTYPES
        and type(x) in _PLAIN
        and x.layout is torch.strided
        and not x.is_nested
        and x.is_contiguous()
        and not x.is_neg()
        and x.numel() > 0
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
    )


def _derived(x: Tensor) -> bool:
    """Whether operations on a gradient must be recorded, for derivatives of a higher order."""
    return (x.requires_grad and torch.is_grad_enabled()) or unpack_dual(x).tangent is not None


class _Embed(Function):
    """``v -> Bv``, with the adjoint ``Bᵀ`` for its gradient; keeps nothing.

    A separate ``setup_context`` would serve torch.func too, at 20 µs a call and a copy of the
    gradient: more than all the rest at 256 × 256.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        made = _compiled("embed", v, 1)
        if made is None:
            made = _embed(v) if v.dtype in HALVES else _embed_in_place(v)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        made = None if _derived(gradient) else _compiled("coordinates", gradient, -1)
        return coordinates(gradient) if made is None else made

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _embed(tangent)


class _Project(Function):
    """``w -> Pw``, its own adjoint; keeps nothing."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        made = _compiled("project", w, 0)
        if made is None:
            made = _project(w) if w.dtype in HALVES else _project_in_place(w)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        made = None if _derived(gradient) else _compiled("project", gradient, 0)
        return _centred(wide(gradient)).to(gradient.dtype) if made is None else made

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _project(tangent)
