"""Linearly constrained weights: rows orthogonal to the ones vector, or to the mean input.

A neuron's mean preactivation is ``w·μ̂ + b``; with ``μ̂`` along the ones vector it vanishes exactly
when the entries of ``w`` sum to zero (Kutsuna, ECML-PKDD 2019, Propositions 1–3). The constraints
here are parametrizations: the layer trains free parameters, and every weight it ever uses lies in
the subspace, also after any optimiser step.

Two forms make the same layer:

* ``w = Bv`` with the orthonormal Householder basis: ``‖w‖ = ‖v‖``, one parameter fewer a neuron;
* ``w = u − mean(u)``: as many parameters as before, and no choice of a basis.

Under SGD with any schedule, momentum, weight decay and clipping by global norm both give the same
weights at every step, whatever the basis, because ``BBᵀ`` is the projector. Element-wise methods
(Adam, RMSProp, sign methods) depend on the coordinates: there the two forms are two different
optimisers, and the projection form keeps the coordinates of the unconstrained layer.

Rounding leaves ``|Σ w| ≤ eps √m ‖w‖``, and ``|w·μ̂| ≤ eps √m ‖w‖ ‖μ̂‖``, with the ``eps`` of the
weight's dtype, however the parameters moved: half precision is computed in float32 and rounded
once. Only weights so small that their entries underflow (float16: near 6e-8) escape the bound.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from shiftscope.errors import UsageError
from shiftscope.fix.subspace import coordinates, embed, project, unit
from shiftscope.fix.unroll import Unroll

__all__ = ["LCW", "Constraint", "DataLCW", "DataLCWProjection", "LCWProjection"]


class Constraint(nn.Module):
    """A parametrization that knows its layer's layout and how to scale its neurons.

    Args:
        unroll: Layout of the layer's weight.
    """

    method: ClassVar[str]

    def __init__(self, unroll: Unroll) -> None:
        super().__init__()
        self.unroll = unroll

    def scale_(self, originals: tuple[Tensor, ...], factor: Tensor) -> None:
        """Multiply the weight of each neuron by a factor, in place, inside the constraint.

        Here: scale the rows of a single original, to which the weight is linear.

        Args:
            originals: The free parameters, as the parametrization holds them.
            factor: Positive factors, shape ``()`` or ``(neurons,)``.
        """
        originals[0].copy_(_scaled(originals[0], factor))

    def _scale_weight_(self, u: Tensor, factor: Tensor) -> None:
        """The same for an original laid out like the weight."""
        u.copy_(self.unroll.fold(_scaled(self.unroll.rows(u), factor)))

    def extra_repr(self) -> str:
        """Name what a print of the model should show."""
        return f"{self.method}, neurons={self.unroll.neurons}, fan_in={self.unroll.fan_in}"


class _ZeroSum(Constraint):
    def __init__(self, unroll: Unroll, *, channelwise: bool = False) -> None:
        super().__init__(unroll)
        self.channelwise = channelwise
        self.length = unroll.taps if channelwise else unroll.fan_in
        _check_length(self.length, unroll, channelwise)

    def _split(self, weight: Tensor) -> Tensor:
        """Rows that sum to zero along the last dimension."""
        rows = self.unroll.rows(weight)
        return rows.view(rows.shape[0], -1, self.length) if self.channelwise else rows

    def _merge(self, rows: Tensor) -> Tensor:
        return self.unroll.fold(rows.flatten(1) if self.channelwise else rows)


class LCW(_ZeroSum):
    """``w = Bv``: rows of the weight sum to zero, by the Householder basis.

    It guarantees ``Σ w = 0`` for each output neuron (each input channel of it, if channel-wise).
    It does not touch the bias, and zero padding of a convolution leaves a residual shift, since
    border taps then see a smaller mean than the centre.

    Args:
        unroll: Layout of the layer's weight.
        channelwise: Sum to zero over the taps of every input channel by itself, which removes the
            shift for any means of the channels.

    Raises:
        UsageError: The rows have a single entry, so that only zero would satisfy the constraint.

    Source:
        Kutsuna, ECML-PKDD 2019, Definition 3 and Appendix B.
    """

    method = "lcw"

    def forward(self, v: Tensor) -> Tensor:
        """Return the weight for coordinates ``(neurons, [channels,] length − 1)``."""
        return self._merge(embed(v))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the coordinates of the projected weight."""
        return coordinates(self._split(weight))


class LCWProjection(_ZeroSum):
    """``w = u − mean(u)``: rows of the weight sum to zero, parameters as before.

    The mean of ``u`` has no effect and no gradient, but it enters optimiser state and norms.

    Args:
        unroll: Layout of the layer's weight.
        channelwise: Sum to zero over the taps of every input channel by itself.

    Raises:
        UsageError: The rows have a single entry.
    """

    method = "lcw-projection"

    def forward(self, u: Tensor) -> Tensor:
        """Return the centred weight."""
        return self._merge(project(self._split(u)))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the centred weight itself."""
        return self.forward(weight)

    def scale_(self, originals: tuple[Tensor, ...], factor: Tensor) -> None:
        """Scale the parameters: the map is linear."""
        self._scale_weight_(originals[0], factor)


class DataLCW(Constraint):
    """``w·μ̂ = 0`` for a given mean input ``μ̂``, by the Householder basis of its complement.

    By Proposition 2 of Kutsuna (2019) the mean preactivation is then the bias alone, whatever the
    direction of the mean. The guarantee is for the stored mean: the shift that remains is
    ``w·(E a − μ̂)``. The mean is a buffer of the model; :meth:`follow_` moves it.

    Args:
        unroll: Layout of the layer's weight.
        mean: Mean input, unrolled, shape ``(groups, fan_in)``.

    Raises:
        UsageError: The mean has another shape, is zero or not finite, or rows have one entry.
    """

    method = "lcw-data"

    mean: Tensor

    def __init__(self, unroll: Unroll, mean: Tensor) -> None:
        super().__init__(unroll)
        _check_length(unroll.fan_in, unroll, channelwise=False)
        _check_mean(mean, unroll)
        self.register_buffer("mean", mean.detach().clone())

    def forward(self, v: Tensor) -> Tensor:
        """Return the weight for coordinates ``(neurons, fan_in − 1)``."""
        grouped = v.view(self.unroll.groups, -1, v.shape[-1])
        return self.unroll.fold(embed(grouped, self._normal()).flatten(0, 1))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the coordinates of the projected weight."""
        return coordinates(self._grouped(weight), self._normal()).flatten(0, 1)

    @torch.no_grad()
    def follow_(self, original: Tensor, mean: Tensor) -> None:
        """Replace the mean; project the weight anew and keep the norm of every row.

        Args:
            original: The free parameter, changed in place.
            mean: New mean input, shape ``(groups, fan_in)``.

        Raises:
            UsageError: The mean has another shape, is zero or not finite.
        """
        _check_mean(mean, self.unroll)
        weight = self.forward(original)
        before = torch.linalg.vector_norm(self.unroll.rows(weight), dim=1)
        self.mean.copy_(mean)
        original.copy_(self.right_inverse(weight))
        after = torch.linalg.vector_norm(self.unroll.rows(self.forward(original)), dim=1)
        self.scale_((original,), torch.where(after > 0, before / after, 1.0))

    def _grouped(self, weight: Tensor) -> Tensor:
        rows = self.unroll.rows(weight)
        return rows.view(self.unroll.groups, -1, rows.shape[-1])

    def _normal(self) -> Tensor:
        return unit(self.mean).unsqueeze(1)


class DataLCWProjection(DataLCW):
    """``w = u − n (n·u)`` with ``n`` along the mean input; the mean may move while training.

    The weight depends smoothly on the mean here, which a basis does not: use this form where the
    mean is a running one.

    Args:
        unroll: Layout of the layer's weight.
        mean: Mean input, unrolled, shape ``(groups, fan_in)``.

    Raises:
        UsageError: The mean has another shape, is zero or not finite, or rows have one entry.
    """

    def forward(self, u: Tensor) -> Tensor:
        """Return the projected weight."""
        return self.unroll.fold(project(self._grouped(u), self._normal()).flatten(0, 1))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the projected weight itself."""
        return self.forward(weight)

    def scale_(self, originals: tuple[Tensor, ...], factor: Tensor) -> None:
        """Scale the parameters: the map is linear."""
        self._scale_weight_(originals[0], factor)


def _scaled(rows: Tensor, factor: Tensor) -> Tensor:
    return rows * factor.to(rows).reshape(-1, *[1] * (rows.ndim - 1))


def _check_length(length: int, unroll: Unroll, channelwise: bool) -> None:
    if length >= 2:
        return
    what = "a kernel with one tap" if channelwise else "rows with one entry"
    raise UsageError(
        f"{what} can sum to zero only by being zero (weight of shape {unroll.shape})",
        "Leave this layer out, or constrain the whole row instead of each channel."
        if channelwise
        else "Leave this layer out.",
    )


def _check_mean(mean: Tensor, unroll: Unroll) -> None:
    expected = (unroll.groups, unroll.fan_in)
    if tuple(mean.shape) != expected:
        raise UsageError(
            f"expected a mean input of shape {expected}, got {tuple(mean.shape)}",
            "Give the mean of the unrolled input, one row a group.",
        )
    norms = torch.linalg.vector_norm(mean.double(), dim=1)
    if not bool(((norms > 0) & norms.isfinite()).all()):
        raise UsageError(
            "a mean input of zero, or with NaN or Inf, has no direction",
            "Measure it on data, or leave this layer unconstrained.",
        )
