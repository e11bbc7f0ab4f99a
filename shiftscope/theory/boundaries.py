r"""Characteristic activation boundaries: where in input space a unit switches, and how that moves.

The boundary of ``ReLU(w·x + b)`` is the hyperplane ``w·x + b = 0``. With ``u = w/‖w‖`` and
``λ = b/‖w‖`` its **spatial location** is ``φ = -λu``, the boundary point nearest the origin
(Chen and Ge, NeurIPS 2024, arXiv 2305.15912, Sec. 2). Everything here takes *effective* weights
and biases, so it serves every parametrisation and every number of inputs; convolution kernels are
flattened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.errors import UsageError
from shiftscope.geometry.angles import angle

__all__ = [
    "Boundaries",
    "Move",
    "crossing_share",
    "effective_batch_norm",
    "effective_geometric",
    "effective_weight_norm",
    "locate",
    "move",
    "spread",
    "worst_rotation",
]


@dataclass(frozen=True)
class Boundaries:
    """The activation boundaries of one layer, one row a unit; NaN where the weight is zero."""

    directions: Tensor
    """Unit normals u, ``[units, inputs]``, in the dtype of the weight."""
    offsets: Tensor
    """Signed distances λ of the origin, ``[units]``, float64; the boundary lies at -λ along u."""

    @property
    def locations(self) -> Tensor:
        """Spatial locations φ = -λu, ``[units, inputs]``, float64."""
        return -self.offsets[:, None] * self.directions.double()

    @property
    def distances(self) -> Tensor:
        """Distances ‖φ‖ = |λ| of the boundaries from the origin, ``[units]``."""
        return self.offsets.abs()


def locate(weight: Tensor, bias: Tensor | None = None) -> Boundaries:
    """Locates the activation boundary of every unit of a layer.

    Args:
        weight: Effective weights ``[units, inputs]``, or kernels ``[units, channels, ...]``.
        bias: Effective biases ``[units]``; None for zero.

    Returns:
        Directions and signed offsets; a unit with zero weight has none (NaN).

    Raises:
        UsageError: The shapes do not fit together.
    """
    rows = _rows(weight)
    shift = rows.new_zeros(len(rows)) if bias is None else bias.detach()
    if shift.shape != (len(rows),):
        raise UsageError(
            f"expected one bias per unit ({len(rows)}), got shape {tuple(shift.shape)}",
            "Pass the bias as a vector [units], or None.",
        )
    # the largest entry first: squares of 1e-30 underflow in float32, of 1e200 overflow in float64
    wide = rows.double()
    scale = wide.abs().amax(1)
    scaled = wide / scale[:, None]
    norm = torch.linalg.vector_norm(scaled, dim=1)
    directions = (scaled / norm[:, None]).to(weight.dtype)
    return Boundaries(directions, shift.double() / scale / norm)


@dataclass(frozen=True)
class Move:
    """How the boundaries of a layer moved in one optimisation step; units without one are NaN."""

    angular_change: Tensor
    """Rotation Δθ of every normal, ``[units]``, radians."""
    offset_change: Tensor
    """Change Δλ of every signed offset, ``[units]``."""
    displacement: Tensor
    """Distance ‖Δφ‖ every spatial location moved, ``[units]``."""
    mean_displacement: float
    """Mean of ``displacement`` over the units that have a boundary before and after."""
    max_displacement: float
    """Largest ``displacement``; NaN where no unit has a boundary."""
    spread_before: float
    """Root mean square distance of the locations from their centre, before the step."""
    spread_after: float
    """The same after the step."""


def move(before: Boundaries, after: Boundaries) -> Move:
    """Measures how far boundaries moved between two states of a layer, O(inputs) per unit.

    Args:
        before: Boundaries before the step.
        after: Boundaries of the same units after it.

    Returns:
        Rotation, offset change and displacement of every unit, and the spreads.

    Raises:
        UsageError: The two states have different shapes.

    Source: Chen and Ge (2024), Fig. 2: the spatial locations' dynamics under a step.
    """
    if before.directions.shape != after.directions.shape:
        raise UsageError(
            "boundaries of the same layer have the same shape, got "
            f"{tuple(before.directions.shape)} and {tuple(after.directions.shape)}",
            "Compare two states of one layer.",
        )
    change = torch.linalg.vector_norm(after.locations - before.locations, dim=1)
    there = change[~change.isnan()]
    return Move(
        angular_change=angle(before.directions, after.directions),
        offset_change=after.offsets - before.offsets,
        displacement=change,
        mean_displacement=float(there.mean()) if len(there) else math.nan,
        max_displacement=float(there.max()) if len(there) else math.nan,
        spread_before=spread(before.locations),
        spread_after=spread(after.locations),
    )


def spread(locations: Tensor) -> float:
    """Measures how far spatial locations scatter: the rms distance from their centre.

    Args:
        locations: Spatial locations ``[units, inputs]``; rows with NaN are left out.

    Returns:
        The spread in units of the input; NaN where no unit has a boundary.
    """
    rows = locations.double()
    rows = rows[~rows.isnan().any(1)]
    if not len(rows):
        return math.nan
    return float((rows - rows.mean(0)).square().sum(1).mean().sqrt())


def crossing_share(weight: Tensor, bias: Tensor | None, data: Tensor, block: int = 4096) -> float:
    """Measures the share of units whose boundary runs through the data.

    A unit counts when samples lie on both sides, that is when its active fraction is neither 0
    nor 1.

    Args:
        weight: Effective weights ``[units, inputs]`` (kernels are flattened: pass patches).
        bias: Effective biases ``[units]``; None for zero.
        data: Inputs ``[samples, inputs]``.
        block: Samples taken at once, which bounds the memory.

    Returns:
        The share in [0, 1].

    Raises:
        UsageError: The data do not fit the weights.
    """
    rows = _rows(weight)
    if data.ndim != 2 or data.shape[1] != rows.shape[1] or not len(data) or not len(rows):
        raise UsageError(
            f"expected data [samples, {rows.shape[1]}], got shape {tuple(data.shape)}",
            "Flatten the inputs; for convolutions pass the unrolled patches.",
        )
    above = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    below = above.clone()
    for part in data.detach().split(block):
        z = torch.nn.functional.linear(part.to(rows.dtype), rows, bias)
        above |= (z > 0).any(0)
        below |= (z <= 0).any(0)
    return float((above & below).double().mean())


def worst_rotation(weight_norm: Tensor, change_norm: Tensor) -> Tensor:
    r"""Computes the largest rotation a change of this size can cause in a Cartesian weight.

    Over all directions of the change ε: :math:`\arcsin(\|\epsilon\|/\|w\|)` below ‖w‖, supremum
    π/2 at equality, π above. The same holds with ``v`` for weight normalisation and for a batch
    norm behind the layer, whose direction is ``v/‖v‖`` (Chen and Ge, 2024, Props. 2.3–2.5, made
    sharp).

    Args:
        weight_norm: Norms ‖w‖, not negative.
        change_norm: Norms ‖ε‖, broadcast against ``weight_norm``.

    Returns:
        Radians, float64; 0 where both are zero.
    """
    norm, change = torch.broadcast_tensors(weight_norm.double(), change_norm.double())
    inside = torch.asin((change / norm).clamp(max=1.0).nan_to_num(0.0))
    return torch.where(change > norm, math.pi, inside)


def effective_weight_norm(v: Tensor, gain: Tensor) -> Tensor:
    """Computes the effective weight ``g v/‖v‖`` of a weight-normalised layer.

    Args:
        v: Direction parameters ``[units, ...]``.
        gain: Norm parameters, ``[units]`` or broadcastable as torch stores them.

    Returns:
        Effective weights, shaped like ``v``.
    """
    norm = torch.linalg.vector_norm(v.flatten(1), dim=1)
    return v.mul((gain.reshape(-1) / norm).reshape(-1, *[1] * (v.ndim - 1)))


def effective_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Folds a batch norm in evaluation mode into the layer in front of it.

    ``w_eff = γw/√(var + eps)`` and ``b_eff = β + γ(b - mean)/√(var + eps)``. The spatial location
    does not depend on the sign of γ; the active side does.

    Args:
        weight: Weights ``[units, ...]``.
        bias: Biases ``[units]``; None for zero.
        mean: Running means ``[units]``.
        variance: Running variances ``[units]``.
        scale: γ, ``[units]``; None for one.
        shift: β, ``[units]``; None for zero.
        eps: What the batch norm adds to the variance.

    Returns:
        Effective weights and biases.
    """
    factor = torch.rsqrt(variance + eps)
    factor = factor if scale is None else factor * scale
    centred = -mean if bias is None else bias - mean
    moved = factor * centred if shift is None else shift + factor * centred
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), moved


def effective_geometric(direction: Tensor, offset: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Converts a geometric unit ``r ReLU(u·x + λ)`` to standard weight and bias.

    For r < 0 the boundary is the right one, but the unit is not a standard ReLU unit:
    ``r ReLU(u·x + λ)`` is then active where ``w·x + b`` is negative.

    Args:
        direction: Unit vectors u, ``[units, ...]``.
        offset: λ, ``[units]``.
        radius: r, ``[units]``.

    Returns:
        Effective weights ``ru`` and biases ``rλ``.
    """
    return direction.mul(radius.reshape(-1, *[1] * (direction.ndim - 1))), radius * offset


def _rows(weight: Tensor) -> Tensor:
    """Weights as one vector per unit, without gradient."""
    if weight.ndim < 2:
        raise UsageError(
            f"expected weights [units, inputs], got shape {tuple(weight.shape)}",
            "Pass the weight of a linear or convolutional layer.",
        )
    return weight.detach().flatten(1)
