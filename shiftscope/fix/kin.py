"""Kin of LCW: centred weight normalisation and the geometric parameterisation."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from shiftscope.errors import UsageError
from shiftscope.fix.lcw import Constraint
from shiftscope.fix.subspace import project
from shiftscope.fix.unroll import Unroll
from shiftscope.theory.hyperspherical import direction, to_angles

__all__ = ["CWN", "GmP", "GmPOffset"]


class CWN(Constraint):
    """``w = g (v − v̄) / ‖v − v̄‖``: zero-sum rows of a given norm.

    The direction of LCW with the scale apart; the gradient of ``v`` is orthogonal to ``v`` and to
    the ones vector, so that plain gradient steps lengthen ``v``.

    Args:
        unroll: Layout of the layer's weight.
        scale: Norm of every row, fixed; None to learn one for each neuron, starting from the norm
            of its centred weight.

    Raises:
        UsageError: The rows have a single entry, or the scale is not positive.

    Source:
        Huang et al., ICCV 2017 (centered weight normalization): unit norm, with a fixed or learned
        scale behind it.
    """

    method = "cwn"

    def __init__(self, unroll: Unroll, *, scale: float | None = None) -> None:
        super().__init__(unroll)
        if unroll.fan_in < 2:
            raise UsageError("rows with one entry sum to zero only by being zero", "Leave it out.")
        if scale is not None and not scale > 0:
            raise UsageError(f"expected a positive scale, got {scale}", "Give the norm of a row.")
        self.scale = scale

    def forward(self, *originals: Tensor) -> Tensor:
        """Return the weight for ``(v)`` or, with a learned scale, ``(g, v)``."""
        rows = project(self.unroll.rows(originals[-1]))
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        directions = rows / norms.clamp_min(torch.finfo(rows.dtype).tiny)
        scale = self.scale if self.scale is not None else originals[0].unsqueeze(1)
        return self.unroll.fold(directions * scale)

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the centred weight as ``v``, and its norms as ``g`` where they are learned."""
        rows = project(self.unroll.rows(weight))
        v = self.unroll.fold(rows)
        return v if self.scale is not None else (torch.linalg.vector_norm(rows, dim=1), v)

    def scale_(self, originals: tuple[Tensor, ...], factor: Tensor) -> None:
        """Scale the learned norms.

        Raises:
            UsageError: The norm is fixed.
        """
        if self.scale is not None:
            raise UsageError(
                f"centred weight normalisation with scale={self.scale} fixes the norm of the rows",
                "Constrain with scale=None to have it learned, or rescale before constraining.",
            )
        originals[0].mul_(factor.to(originals[0]))


class GmP(Constraint):
    """``w = r u(θ)``: every row by its norm and the hyperspherical angles of its direction.

    A step of the angles by ``ε`` turns the neuron's boundary by at most ``‖ε‖``, however small the
    weights are. ``r`` may become negative, which mirrors the neuron. With one input there is no
    angle and ``r`` carries the sign.

    Args:
        unroll: Layout of the layer's weight; convolutions have one direction an output channel.

    Source:
        Chen and Ge, NeurIPS 2024, arXiv 2305.15912; angles converted by atan2, which keeps the
        sign of the last coordinate.
    """

    method = "gmp"

    def forward(self, radius: Tensor, angles: Tensor) -> Tensor:
        """Return the weight for norms ``(neurons,)`` and angles ``(neurons, fan_in − 1)``."""
        return self.unroll.fold(direction(angles) * radius.unsqueeze(1))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return norms and angles of the rows."""
        rows = self.unroll.rows(weight)
        radius, angles = to_angles(rows)
        return (rows[:, 0].clone() if self.unroll.fan_in == 1 else radius), angles

    def scale_(self, originals: tuple[Tensor, ...], factor: Tensor) -> None:
        """Scale the norms."""
        originals[0].mul_(factor.to(originals[0]))


class GmPOffset(nn.Module):
    """``b = r λ``: the bias by the signed distance of the neuron's boundary from the origin.

    Args:
        weight: The parametrization list of the layer's weight, whose first original is ``r``.

    Source:
        Chen and Ge, NeurIPS 2024, Section 3.
    """

    def __init__(self, weight: nn.Module) -> None:
        super().__init__()
        self._weight = (weight,)  # a tuple, so that it does not become a submodule

    def forward(self, distance: Tensor) -> Tensor:
        """Return the bias for signed distances ``λ``."""
        return distance * self._radius()

    def right_inverse(self, bias: Tensor) -> Tensor:
        """Return ``b / r``, and 0 for neurons without weight."""
        radius = self._radius()
        return torch.where(radius == 0, 0.0, bias / torch.where(radius == 0, 1.0, radius))

    def _radius(self) -> Tensor:
        return cast(Tensor, self._weight[0].original0)
