"""Angles and norms of weight rows, and the shift they predict.

Everything is computed in float64 a few rows at a time, so that a head of 50 000 classes costs no
float64 copy of its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from shiftscope.errors import UsageError

__all__ = [
    "angle",
    "angle_to_mean",
    "angle_to_ones",
    "eta",
    "lcw_residual",
    "p_gamma_index",
    "row_norms",
    "shift",
    "xi",
]

_BLOCK = 1 << 19
"""Elements converted to float64 at once: 4 MB for each of a handful of temporaries."""


def angle(u: Tensor, v: Tensor, dim: int = -1) -> Tensor:
    """Angle between vectors, accurate also near 0 and π.

    `2·atan2(‖û − v̂‖, ‖û + v̂‖)` on unit vectors; the arc cosine would lose half the digits. Each
    vector is first divided by its largest element, so that neither 1e30 nor 1e-30 overflows.

    Args:
        u: Vectors along `dim`; broadcast against `v`.
        v: Vectors along `dim`.
        dim: The dimension the vectors lie along, counted in the broadcast shape.

    Returns:
        Radians in float64, of the broadcast shape without `dim`; NaN where either vector is zero
        or has an element that is not finite.

    Raises:
        UsageError: The shapes do not broadcast.

    Source: W. Kahan, "How futile are mindless assessments of roundoff in floating-point
    computation?" (2006), section 12.
    """
    try:
        u, v = torch.broadcast_tensors(u.detach(), v.detach())
    except RuntimeError as error:
        raise UsageError(
            f"cannot measure angles between vectors of shapes {tuple(u.shape)} and "
            f"{tuple(v.shape)}",
            "Give two tensors whose shapes broadcast.",
        ) from error
    if u.ndim == 0:
        raise UsageError("angle() got two scalars", "Give vectors with at least one dimension.")
    u, v = u.movedim(dim, -1), v.movedim(dim, -1)
    if u.ndim == 1:
        return _angle(u, v)
    pieces = [_angle(u[rows], v[rows]) for rows in _row_slices(u)]
    return torch.cat(pieces) if pieces else _nothing(u)


def angle_to_ones(w: Tensor) -> Tensor:
    """Angle θ of each weight row to the vector of ones.

    Args:
        w: [out, ...] weights; all but the first dimension make up the row.

    Returns:
        [out] radians in float64, NaN for a zero row.

    Source: Kutsuna, "Linearly Constrained Weights: Reducing Activation Shift for Faster Training
    of Neural Networks" (ECML-PKDD 2019), Proposition 1.
    """
    rows = _rows(w)
    return angle(rows, torch.ones((1, rows.shape[1]), dtype=torch.float64, device=w.device))


def angle_to_mean(weight_rows: Tensor, mu: Tensor, group_of_output: Tensor | None = None) -> Tensor:
    """Angle θ̂ of each weight row to the mean input it meets.

    Args:
        weight_rows: [out, ...] weights; all but the first dimension make up the row.
        mu: [in] mean input, or [groups, in] one for each group of a convolution.
        group_of_output: [out] index of the group of each row; may be left out with one group.

    Returns:
        [out] radians in float64, NaN for a zero row or a zero mean.

    Raises:
        UsageError: The mean does not fit the rows.

    Source: Kutsuna (ECML-PKDD 2019), Proposition 2.
    """
    rows, means, groups = _grouped(weight_rows, mu, group_of_output)
    return _by_rows(lambda part, at: angle(part, _means_of(means, groups, at)), rows)


def row_norms(w: Tensor) -> Tensor:
    """Norm ‖w_i‖ of each weight row.

    Args:
        w: [out, ...] weights; all but the first dimension make up the row.

    Returns:
        [out] norms in float64.
    """
    return _by_rows(lambda part, _: torch.linalg.vector_norm(part.double(), dim=1), _rows(w))


def eta(w: Tensor) -> Tensor:
    """Squared norm η_i = ‖w_i‖² of each weight row: the forward variance gain of neuron i.

    Args:
        w: [out, ...] weights; all but the first dimension make up the row.

    Returns:
        [out] squared norms in float64.

    Source: Kutsuna (ECML-PKDD 2019), Proposition 4.
    """
    return _by_rows(lambda part, _: part.double().square().sum(1), _rows(w))


def xi(w: Tensor) -> Tensor:
    """Squared norm ξ_j = ‖w̃_j‖² of each weight column: the backward variance gain of input j.

    Args:
        w: [out, ...] weights; all but the first dimension make up the row.

    Returns:
        [in] squared norms in float64.

    Source: Kutsuna (ECML-PKDD 2019), Proposition 5.
    """
    rows = _rows(w)
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=w.device)
    for piece in _row_slices(rows):
        total = total + rows[piece].double().square().sum(0)
    return total


def p_gamma_index(mu: Tensor) -> Tensor:
    """P_γ index of a mean input: the squared cosine of its angle to the vector of ones.

    It is the expected part of the activation shift that zero-sum weights remove: 1 where all
    inputs have the same mean, as P_γ demands.

    Args:
        mu: [..., in] mean inputs.

    Returns:
        [...] values in 0..1 in float64, NaN for a zero mean.

    Source: follows from Kutsuna (ECML-PKDD 2019), Definition 1 and Proposition 2.
    """
    return (
        angle(mu, torch.ones(mu.shape[-1:], dtype=torch.float64, device=mu.device)).cos().square()
    )


def lcw_residual(w: Tensor) -> Tensor:
    """How far weights are from zero-sum rows: the largest |Σ_j w_ij| / (‖w_i‖ √m).

    Args:
        w: [out, ...] weights; all but the first dimension make up the row of m elements.

    Returns:
        Scalar in 0..1 in float64; rows that are zero or not finite are left out, NaN if all are.

    Source: Kutsuna (ECML-PKDD 2019), Definition 3.
    """
    rows = _rows(w)
    if rows.numel() == 0:
        return torch.full((), torch.nan, dtype=torch.float64, device=w.device)
    worst = _by_rows(lambda part, _: _residual(part), rows).nan_to_num(nan=-1.0).amax()
    return torch.where(worst < 0, torch.nan, worst)


def shift(weight_rows: Tensor, mu: Tensor, group_of_output: Tensor | None = None) -> Tensor:
    """Shift w_i·μ̂ of each neuron that its mean input predicts, before any bias.

    Args:
        weight_rows: [out, ...] weights; all but the first dimension make up the row.
        mu: [in] mean input, or [groups, in] one for each group of a convolution.
        group_of_output: [out] index of the group of each row; may be left out with one group.

    Returns:
        [out] predicted mean preactivations in float64.

    Raises:
        UsageError: The mean does not fit the rows.

    Source: Kutsuna (ECML-PKDD 2019), Proposition 2.
    """
    rows, means, groups = _grouped(weight_rows, mu, group_of_output)
    return _by_rows(lambda part, at: (part.double() * _means_of(means, groups, at)).sum(1), rows)


def _angle(u: Tensor, v: Tensor) -> Tensor:
    u, v = _unit(u), _unit(v)
    apart = torch.linalg.vector_norm(u - v, dim=-1)
    return 2 * torch.atan2(apart, torch.linalg.vector_norm(u + v, dim=-1))


def _unit(u: Tensor) -> Tensor:
    """Unit vectors; NaN throughout for one that is zero or not finite (0/0, inf/inf)."""
    if u.shape[-1] == 0:
        return torch.full((*u.shape[:-1], 1), torch.nan, dtype=torch.float64, device=u.device)
    u = u.double()
    scaled: Tensor = u / u.abs().amax(-1, keepdim=True)
    return scaled.div(torch.linalg.vector_norm(scaled, dim=-1, keepdim=True))


def _residual(part: Tensor) -> Tensor:
    return _unit(part).sum(1).abs().div(part.shape[1] ** 0.5)


def _rows(w: Tensor) -> Tensor:
    if w.ndim < 2:
        raise UsageError(
            f"expected weights [out, in, ...], got shape {tuple(w.shape)}",
            "Give a weight matrix, or a convolution's kernel unrolled with PatchMap.unroll.",
        )
    return w.detach().flatten(1)


def _row_slices(rows: Tensor) -> Iterator[slice]:
    """Slices of the first dimension, each of at most `_BLOCK` elements (or one row)."""
    width = max(1, rows[:1].numel())
    step = max(1, _BLOCK // width)
    return (slice(start, start + step) for start in range(0, rows.shape[0], step))


def _by_rows(function: Callable[[Tensor, slice], Tensor], rows: Tensor) -> Tensor:
    pieces = [function(rows[at], at) for at in _row_slices(rows)]
    return torch.cat(pieces) if pieces else _nothing(rows)


def _nothing(rows: Tensor) -> Tensor:
    return torch.empty(rows.shape[:-1], dtype=torch.float64, device=rows.device)


def _grouped(w: Tensor, mu: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    rows = _rows(w)
    means = mu.detach().double()
    means = means.unsqueeze(0) if means.ndim == 1 else means
    fits = means.ndim == 2 and means.shape[1] == rows.shape[1]
    if not fits or (means.shape[0] != 1 and groups is None):
        raise UsageError(
            f"a mean input of shape {tuple(mu.shape)} does not fit weight rows of shape "
            f"{tuple(rows.shape)}",
            "Give [in] or [groups, in], and group_of_output where there are several groups.",
        )
    return rows, means, groups if means.shape[0] > 1 else None


def _means_of(means: Tensor, groups: Tensor | None, at: slice) -> Tensor:
    return means if groups is None else means[groups[at]]
