r"""Directions of weight vectors as angles, and back.

.. math::
    u_1 = \cos\theta_1,\quad u_k = \sin\theta_1 \cdots \sin\theta_{k-1}\cos\theta_k,\quad
    u_n = \sin\theta_1 \cdots \sin\theta_{n-1}

with :math:`\theta_k \in [0, \pi]` for :math:`k < n-1` and :math:`\theta_{n-1} \in (-\pi, \pi]`
(geometric parameterization of ReLU networks: Chen and Ge, NeurIPS 2024, arXiv 2305.15912).

The last angle keeps the sign of the last coordinate. The released code of that paper does not: its
conversion takes :math:`|w_n|`, so that every direction lands in the half space
:math:`u_n \ge 0` and a round trip flips half of all weight vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.errors import UsageError
from shiftscope.geometry.angles import angle

__all__ = ["Perturbation", "direction", "metric", "perturbation", "to_angles"]


def to_angles(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Splits weight vectors into norm and hyperspherical angles.

    Differentiable twice away from the poles, O(n) per row, computed in float64 on a copy scaled by
    its largest entry, so that neither tiny nor huge weights lose their direction. A zero vector
    gets radius 0 and angles 0. With n = 1 there is no angle and the sign of the weight is lost:
    keep it beside the radius.

    Args:
        weight: Weight vectors ``[..., n]``.

    Returns:
        Norms ``[...]`` and angles ``[..., n - 1]`` in radians, in the dtype of ``weight``.

    Raises:
        UsageError: The vectors have no entries.
    """
    if weight.ndim == 0 or weight.shape[-1] == 0:
        raise UsageError(
            f"a weight vector needs at least one entry, got shape {tuple(weight.shape)}",
            "Pass weights as [neurons, inputs].",
        )
    scale = weight.detach().abs().amax(-1, keepdim=True).double()
    scaled = weight.double() / torch.where(scale > 0, scale, 1.0)
    tails = _tail_norms(scaled)
    radius = tails[..., 0] * scale[..., 0]
    polar = torch.atan2(tails[..., 1:-1], scaled[..., :-2])
    last = torch.atan2(scaled[..., -1:], scaled[..., -2:-1])
    angles = torch.cat([polar, last], -1) if weight.shape[-1] > 1 else scaled[..., 1:]
    return radius.to(weight.dtype), angles.to(weight.dtype)


def direction(angles: Tensor) -> Tensor:
    """Builds the unit vectors that have these hyperspherical angles.

    Differentiable to any order; a pole (a sine of zero) has zero gradient in the later angles.

    Args:
        angles: Angles ``[..., n - 1]`` in radians; no entry (n = 1) gives the vector (1).

    Returns:
        Unit vectors ``[..., n]`` in the dtype of ``angles``.
    """
    # half precision loses 1e-3 of the norm over a few hundred factors
    wide = angles.float() if angles.dtype in (torch.float16, torch.bfloat16) else angles
    one = wide.new_ones(*wide.shape[:-1], 1)
    sines = torch.cat([one, torch.sin(wide)], -1).cumprod(-1)
    return (sines * torch.cat([torch.cos(wide), one], -1)).to(angles.dtype)


def metric(angles: Tensor) -> Tensor:
    r"""Computes how far a direction moves per unit of each angle, squared.

    The sphere's line element is :math:`ds^2 = \sum_i g_i d\theta_i^2` with
    :math:`g_i = \prod_{j<i}\sin^2\theta_j \le 1`; for uniform directions
    :math:`E g_i = (n-i+1)/n`. Where a sine vanishes the later angles are dead.

    Args:
        angles: Angles ``[..., n - 1]`` in radians.

    Returns:
        Metric coefficients ``[..., n - 1]``.
    """
    squares = torch.sin(angles[..., :-1]).square()
    return torch.cat([torch.ones_like(angles[..., :1]), squares], -1).cumprod(-1)


@dataclass(frozen=True)
class Perturbation:
    """What a change of the angles does to the direction, and what bounds it; all in radians.

    The chain ``angular_change <= path_length <= bound_l2 <= bound_l1`` holds for every change,
    not only for small ones.
    """

    angular_change: Tensor
    """The angle between the directions before and after, ``[...]``."""
    first_order: Tensor
    """The metric's estimate at the start."""
    path_length: Tensor
    """Length of the straight path in the angles, measured on the sphere."""
    bound_l2: Tensor
    """Euclidean norm of the change."""
    bound_l1: Tensor
    """Sum of the absolute changes."""


def perturbation(angles: Tensor, change: Tensor, panels: int = 32) -> Perturbation:
    r"""Measures the stability of directions under a change of their angles.

    The geodesic is no longer than the coordinate path, hence
    :math:`\angle(u(\theta), u(\theta+\epsilon)) \le \int_0^1 \sqrt{\sum_i g_i\epsilon_i^2}\,dt
    \le \|\epsilon\|_2` (sharpens the stability theorem of Chen and Ge, 2024).

    Args:
        angles: Angles ``[..., n - 1]`` in radians.
        change: Change of the angles, same shape.
        panels: Number of 16-point Gauss–Legendre panels along the path.

    Returns:
        The change of direction and its bounds.
    """
    start, step = angles.double(), change.double()
    return Perturbation(
        angular_change=angle(direction(start), direction(start + step)),
        first_order=(metric(start) * step.square()).sum(-1).sqrt(),
        path_length=_path_length(start, step, panels),
        bound_l2=torch.linalg.vector_norm(step, dim=-1),
        bound_l1=step.abs().sum(-1),
    )


def _tail_norms(vectors: Tensor) -> Tensor:
    """Norms of ``vectors[..., k:]`` for every k, with gradient 0 (not NaN) where a tail is zero."""
    sums = vectors.square().flip(-1).cumsum(-1).flip(-1)
    positive = sums > 0
    return torch.where(positive, torch.where(positive, sums, 1.0).sqrt(), 0.0)


def _path_length(angles: Tensor, change: Tensor, panels: int) -> Tensor:
    from numpy.polynomial.legendre import leggauss

    nodes, weights = leggauss(16)
    total = torch.zeros(angles.shape[:-1], dtype=angles.dtype, device=angles.device)
    for panel in range(panels):
        for node, weight in zip(nodes, weights, strict=True):
            at = angles + (panel + 0.5 + 0.5 * node) / panels * change
            total = total + weight * (metric(at) * change.square()).sum(-1).sqrt()
    return total * (0.5 / panels)
