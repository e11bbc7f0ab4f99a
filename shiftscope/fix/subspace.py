r"""The hyperplane {w : w·n = 0}: its closed-form orthonormal basis and its projector.

Let ``n`` be a unit vector of R^m (the ones direction ``1/√m`` unless given), ``s = sign(n_1)``
(``+1`` at 0) and ``H = I − 2uuᵀ/uᵀu`` the Householder reflection with ``u = n + s e_1``. Since
``H e_1 = −s n``, the other columns ``B = H[:, 1:]`` are an orthonormal basis of the hyperplane:

.. math::  (Bv)_1 = -s t,\quad (Bv)_{k+1} = v_k - n_{k+1} t / (1 + |n_1|),\quad t = n_{2:} \cdot v

which costs O(m) a neuron and stores nothing. All functions act on the last dimension, compute in
float32 when given half precision, and round once at the end. Those of the ones direction are in
:mod:`shiftscope.fix.zerosum`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from shiftscope.fix import zerosum
from shiftscope.fix.zerosum import lean, wide

__all__ = ["coordinates", "embed", "project", "unit"]


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
    return zerosum.embed(v) if normal is None else lean(_Embed, _embed, v, normal)


def coordinates(w: Tensor, normal: Tensor | None = None) -> Tensor:
    """Return ``Bᵀw``, the coordinates of the projection of ``w`` onto the hyperplane.

    Args:
        w: Vectors, shape ``(..., m)``; they need not lie in the hyperplane.
        normal: Unit normal, shape broadcastable to ``(..., m)``; None for ``1/√m``.

    Returns:
        Shape ``(..., m − 1)``, dtype of ``w``.
    """
    return zerosum.coordinates(w) if normal is None else _coordinates(w, normal)


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
    return zerosum.project(w) if normal is None else lean(_Project, _project, w, normal)


def unit(vector: Tensor) -> Tensor:
    """Return ``vector`` divided by its norm along the last dimension, in float32 or wider.

    Args:
        vector: Shape ``(..., m)``; scaled by its largest entry first, so that squares of very
            large or small entries neither overflow nor vanish.

    Returns:
        Same shape; NaN where the vector is zero.
    """
    full = wide(vector)
    scaled = full / full.abs().amax(-1, keepdim=True)
    result: Tensor = scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return result


def _embed(v: Tensor, normal: Tensor) -> Tensor:
    full = wide(v)
    n = normal.to(full.dtype)
    head, tail = n[..., :1], n[..., 1:]
    t = (full * tail).sum(-1, keepdim=True)
    return torch.cat((-_sign(head) * t, full - tail * (t / (1 + head.abs()))), -1).to(v.dtype)


def _coordinates(w: Tensor, normal: Tensor) -> Tensor:
    full = wide(w)
    n = normal.to(full.dtype)
    head, tail = n[..., :1], n[..., 1:]
    first, rest = full.tensor_split((1,), -1)
    t = (rest * tail).sum(-1, keepdim=True)
    return (rest - tail * (t / (1 + head.abs()) + _sign(head) * first)).to(w.dtype)


def _project(w: Tensor, normal: Tensor) -> Tensor:
    return _centred(_centred(wide(w), normal), normal).to(w.dtype)


def _centred(w: Tensor, normal: Tensor) -> Tensor:
    n = normal.to(w.dtype)
    return w - n * (w * n).sum(-1, keepdim=True)


def _sign(head: Tensor) -> Tensor:
    return torch.where(head < 0, -torch.ones_like(head), torch.ones_like(head))


def _keep(ctx: Any, normal: Tensor) -> None:
    ctx.save_for_backward(normal)
    ctx.save_for_forward(normal)


class _Embed(Function):
    """``v -> Bv``, with the adjoint ``Bᵀ`` for its gradient; keeps nothing but the normal."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, normal: Tensor) -> Tensor:
        _keep(ctx, normal)
        return _embed(v, normal)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _coordinates(gradient, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _embed(tangent, *ctx.saved_tensors)


class _Project(Function):
    """``w -> Pw``, its own adjoint; keeps nothing but the normal."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, normal: Tensor) -> Tensor:
        _keep(ctx, normal)
        return _project(w, normal)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _centred(wide(gradient), *ctx.saved_tensors).to(gradient.dtype), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _project(tangent, *ctx.saved_tensors)
