"""Everything the report says of weight rows, from one conversion of each to float64.

The functions of :mod:`shiftscope.geometry.angles` each read the weights anew; at the end of a
window of training all of them are wanted of all layers at once, and the memory is read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.geometry.angles import angle_to_ones

__all__ = ["RowFacts", "power_of_terms", "row_facts"]

_CPU_BLOCK, _DEVICE_BLOCK = 1 << 16, 1 << 22
"""Elements converted at once: 512 KB stay in the second-level cache of a CPU, few launches."""


@dataclass(frozen=True)
class RowFacts:
    """Facts of weight rows ``[out, m]``, in float64.

    Attributes:
        norm2: Squared norms of the rows, ``[out]``.
        row_sum: Sums of the rows, ``[out]``.
        theta_ones: Their angles to the vector of ones in radians, ``[out]``; NaN for a zero row.
        shift: Their products with the mean input, ``[out]``; NaN without one.
        columns: Squared norms of the columns, ``[m]``.
    """

    norm2: Tensor
    row_sum: Tensor
    theta_ones: Tensor
    shift: Tensor
    columns: Tensor


def row_facts(rows: Tensor, means: Tensor | None = None, groups: Tensor | None = None) -> RowFacts:
    """Norms, sums, angles and predicted shifts of weight rows.

    Args:
        rows: Weights ``[out, m]``.
        means: Mean inputs ``[groups, m]``; None for none.
        groups: Group of each row, ``[out]``; may be left out with one group.

    Returns:
        The facts.

    Source: Kutsuna (ECML-PKDD 2019), Propositions 1, 2, 4 and 5.
    """
    rows, m = rows.detach(), rows.shape[1]
    columns = torch.zeros(m, dtype=torch.float64, device=rows.device)
    parts = []
    for at in _slices(rows):
        part = rows[at].double()
        squares = part.square()
        columns += squares.sum(0)
        norm2, total = squares.sum(1), part.sum(1)
        shift = total * torch.nan if means is None else _dot(part, means, groups, at)
        # θ from the component along 1 and the rest: right to the last digits at any angle.
        across = torch.linalg.vector_norm(part - (total / max(1, m))[:, None], dim=1)
        theta = torch.atan2(across * m**0.5, total).where(norm2 > 0, torch.nan)
        parts.append(torch.stack([norm2, total, theta, shift]))
    norm2, total, theta, shift = torch.cat(parts, 1) if parts else columns.new_empty(4, 0)
    if rows.dtype == torch.float64:  # squares of 1e-200 vanish
        theta = angle_to_ones(rows)
    return RowFacts(norm2, total, theta, shift, columns)


def power_of_terms(rows: Tensor, power: Tensor, groups: Tensor | None = None) -> Tensor:
    """Sums ``sum_j w_ij^2 p_j`` over the inputs of each row.

    Args:
        rows: Weights ``[out, m]``.
        power: Mean squares of the inputs ``[groups, m]``.
        groups: Group of each row, ``[out]``; may be left out with one group.

    Returns:
        ``[out]`` in float64.
    """
    squares = (
        _dot(rows[at].detach().to(torch.float64, copy=True).square_(), power, groups, at)
        for at in _slices(rows)
    )
    return torch.cat([*squares]) if len(rows) else power.new_empty(0)


def _dot(part: Tensor, means: Tensor, groups: Tensor | None, at: slice) -> Tensor:
    if len(means) == 1 or groups is None:
        return part @ means[0]
    return (part * means[groups[at]]).sum(1)


def _slices(rows: Tensor) -> Iterator[slice]:
    """Slices of the first dimension, each of at most a block of elements (or one row)."""
    step = max(1, (_CPU_BLOCK if rows.is_cpu else _DEVICE_BLOCK) // max(1, rows.shape[1]))
    return (slice(start, start + step) for start in range(0, rows.shape[0], step))
