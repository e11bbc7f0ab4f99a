r"""The hyperplane {w : w·n = 0}: its closed-form orthonormal basis and its projector.

Let ``n`` be a unit vector of R^m (the ones direction ``1/√m`` unless given), ``s = sign(n_1)``
(``+1`` at 0) and ``H = I − 2uuᵀ/uᵀu`` the Householder reflection with ``u = n + s e_1``. Since
``H e_1 = −s n``, the other columns ``B = H[:, 1:]`` are an orthonormal basis of the hyperplane:

.. math::  (Bv)_1 = -s t,\quad (Bv)_{k+1} = v_k - n_{k+1} t / (1 + |n_1|),\quad t = n_{2:} \cdot v

which costs O(m) a neuron and stores nothing. All functions act on the last dimension, compute in
float32 when given half precision, and round once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["coordinates", "embed", "project", "unit"]

_HALVES = (torch.float16, torch.bfloat16)
_CACHE = 2**19
"""Bytes of a piece that lies, with what is made of it, in the second-level cache of one core."""
_MANY = 8
"""Fewer pieces than this cost more calls than they save memory traffic."""


def embed(v: Tensor, normal: Tensor | None = None) -> Tensor:
    """Return the vector ``Bv`` of the hyperplane with coordinates ``v``.

    Rounding to the dtype of ``v`` is the only error of note: ``|Bv·n| ≤ eps ‖Bv‖`` for a given
    normal, ``|Σ Bv| ≤ eps √m ‖Bv‖`` for the ones direction.

    Args:
        v: Coordinates, shape ``(..., m − 1)``.
        normal: Unit normal, shape broadcastable to ``(..., m)``; None for ``1/√m``.

    Returns:
        Shape ``(..., m)``, dtype of ``v``; differentiable in ``v`` to any order, not in ``normal``.

    Source:
        Linearly constrained weights w = Bv: Kutsuna, ECML-PKDD 2019, Section 4 and Appendix B; the
        Householder form of the basis is the standard one.
    """
    return _through(_Embed, _embed, v, normal)


def coordinates(w: Tensor, normal: Tensor | None = None) -> Tensor:
    """Return ``Bᵀw``, the coordinates of the projection of ``w`` onto the hyperplane.

    Args:
        w: Vectors, shape ``(..., m)``; they need not lie in the hyperplane.
        normal: Unit normal, shape broadcastable to ``(..., m)``; None for ``1/√m``.

    Returns:
        Shape ``(..., m − 1)``, dtype of ``w``.
    """
    wide = _wide(w)
    first, rest = wide.tensor_split((1,), -1)  # one call, for two indexings
    if normal is None:
        m = w.shape[-1]
        total = wide.sum(-1, keepdim=True).add_(first, alpha=math.sqrt(m))
        v = torch.sub(rest, total, alpha=_weight(m))
    else:
        n = normal.to(wide.dtype)
        head, tail = n[..., :1], n[..., 1:]
        t = (rest * tail).sum(-1, keepdim=True)
        v = rest - tail * (t / (1 + head.abs()) + _sign(head) * first)
    return v if wide is w else v.to(w.dtype)


def project(w: Tensor, normal: Tensor | None = None) -> Tensor:
    """Return ``w − n (n·w)``, the projection of ``w`` onto the hyperplane.

    The projection is applied twice: the second pass removes what rounding left of a large
    component along the normal, so the bound of :func:`embed` holds for any ``w``.

    Args:
        w: Vectors, shape ``(..., m)``.
        normal: Unit normal, shape broadcastable to ``(..., m)``; None for ``1/√m``.

    Returns:
        Shape ``(..., m)``, dtype of ``w``.
    """
    return _through(_Project, _project, w, normal)


def unit(vector: Tensor) -> Tensor:
    """Return ``vector`` divided by its norm along the last dimension, in float32 or wider.

    Args:
        vector: Shape ``(..., m)``; scaled by its largest entry first, so that squares of very
            large or small entries neither overflow nor vanish.

    Returns:
        Same shape; NaN where the vector is zero.
    """
    wide = _wide(vector)
    scaled = wide / wide.abs().amax(-1, keepdim=True)
    result: Tensor = scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return result


def _through(
    function: type[_Linear],
    plain: Callable[[Tensor, Tensor | None], Tensor],
    x: Tensor,
    normal: Tensor | None,
) -> Tensor:
    """Apply the lean form in eager mode, plain operations wherever something traces them."""
    if torch.compiler.is_compiling():
        return plain(x, normal)
    try:
        result: Tensor = function.apply(x, normal)  # type: ignore[no-untyped-call]
    except RuntimeError:  # a transform of torch.func
        result = plain(x, normal)
    return result


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALVES else x


def _embed(v: Tensor, normal: Tensor | None) -> Tensor:
    wide = _wide(v)
    if normal is None:
        rest = wide - wide.sum(-1, keepdim=True) * _weight(v.shape[-1] + 1)
        parts = (-rest.sum(-1, keepdim=True), rest)
    else:
        n = normal.to(wide.dtype)
        head, tail = n[..., :1], n[..., 1:]
        t = (wide * tail).sum(-1, keepdim=True)
        parts = (-_sign(head) * t, wide - tail * (t / (1 + head.abs())))
    return torch.cat(parts, -1).to(v.dtype)


def _embed_in_place(v: Tensor) -> Tensor:
    """Write the ones case straight into its result, without a temporary (eager only)."""
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


def _project(w: Tensor, normal: Tensor | None) -> Tensor:
    return _centred(_centred(_wide(w), normal), normal).to(w.dtype)


def _centred(w: Tensor, normal: Tensor | None) -> Tensor:
    if normal is None:
        return w - w.mean(-1, keepdim=True)
    n = normal.to(w.dtype)
    return w - n * (w * n).sum(-1, keepdim=True)


def _project_in_place(w: Tensor) -> Tensor:
    once = w - w.mean(-1, keepdim=True)
    return once.sub_(once.mean(-1, keepdim=True))


def _weight(m: int) -> float:
    return 1 / (m + math.sqrt(m))


def _sign(head: Tensor) -> Tensor:
    return torch.where(head < 0, -torch.ones_like(head), torch.ones_like(head))


class _Linear(Function):
    """A linear map of the last dimension; keeps nothing but a given normal.

    A separate ``setup_context`` would serve torch.func too, at 20 µs a call and a copy of the
    gradient: a third of the whole at 256 × 256.
    """

    @staticmethod
    def keep(ctx: Any, normal: Tensor | None) -> None:
        ctx.ones = normal is None
        if normal is not None:
            ctx.save_for_backward(normal)
            ctx.save_for_forward(normal)

    @staticmethod
    def kept(ctx: Any) -> Tensor | None:
        return None if ctx.ones else ctx.saved_tensors[0]


class _Embed(_Linear):
    """``v -> Bv``, with the adjoint ``Bᵀ`` for its gradient."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, normal: Tensor | None) -> Tensor:
        _Linear.keep(ctx, normal)
        lean = normal is None and v.dtype not in _HALVES
        return _embed_in_place(v) if lean else _embed(v, normal)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return coordinates(gradient, _Linear.kept(ctx)), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _embed(tangent, _Linear.kept(ctx))


class _Project(_Linear):
    """``w -> Pw``, its own adjoint."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, normal: Tensor | None) -> Tensor:
        _Linear.keep(ctx, normal)
        lean = normal is None and w.dtype not in _HALVES
        return _project_in_place(w) if lean else _project(w, normal)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        centred = _centred(_wide(gradient), _Linear.kept(ctx))
        return centred.to(gradient.dtype), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _project(tangent, _Linear.kept(ctx))
