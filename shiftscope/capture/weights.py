"""Facts of weights: norms, angles, eta and xi, and the shift they predict from the mean input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shiftscope import geometry
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.mean_inputs import MeanInput
from shiftscope.record import WeightFacts
from shiftscope.tally import Moments
from shiftscope.tally.transfer import groups_to_host

__all__ = [
    "OpenFacts",
    "close_facts",
    "input_power",
    "is_readable",
    "rounding_scale",
    "weight_facts",
]

_CHUNK = 2**22
_SUM_ROUNDING = 4.0
"""Rounding of a sum of products, in units of one rounding of its terms, at the threshold of
``Moments.below_resolution``: collapsed float32 layers measure a noise of 1 to 2 eps·sqrt(sum w²a²),
so that a variance that is not flagged is within a few per cent of the exact one."""


def is_readable(weight: Tensor) -> bool:
    """Whether a weight holds real numbers; a sharded one is freed when its forward has ended."""
    if weight.is_meta or weight.is_quantized or not weight.is_floating_point():
        return False
    steps = zip(weight.shape, weight.stride(), strict=True)
    reach = weight.storage_offset() + 1 + sum((size - 1) * stride for size, stride in steps)
    return weight.untyped_storage().nbytes() >= reach * weight.element_size()


def input_power(moments: Moments) -> Tensor:
    """Mean squares of the inputs of a linear map, ``[inputs]`` in float64."""
    return (moments.mean.nan_to_num() ** 2 + moments.variance.nan_to_num()).clamp(min=0)


def rounding_scale(op: LinearOp, power: Tensor) -> Tensor:
    """Size of the terms that each output of a linear map is summed from.

    A multiple of ``sqrt(sum_j w_ij^2 E(a_j^2))``: where terms of this size cancel in the sum, the
    rounding of inputs and partial sums is proportional to it, not to the result.

    Args:
        op: The parsed call; its weight can be read.
        power: Mean squares of its inputs (channels, for a convolution), where the weight lies.

    Returns:
        ``[out]`` in float64.
    """
    rows = op.rows(op.weight)
    # The same for all taps of an input channel.
    power = power.reshape(op.groups, -1)
    taps = rows.shape[1] // power.shape[1]
    power = power.repeat_interleave(taps, 1) if taps > 1 else power
    sums = geometry.power_of_terms(rows, power, _groups_of(op, rows))
    return _SUM_ROUNDING * sums.sqrt()


@dataclass(frozen=True)
class OpenFacts:
    """What becomes :class:`WeightFacts` once it has come to the CPU; no step waits for it.

    Attributes:
        rows: Rows behind the mean input, a scalar in float64.
        sums: Squared norms, sums, angles to 1 and predicted shifts of the rows, ``[4, out]``.
        bias: Biases ``[out]`` in float64.
        mu: Mean input ``[groups, fan_in]``, or None.
        gains: For convolutions xi and eta, ``[2]``.
        shape: Groups and fan-in.
        z_mean: Means of z ``[out]``, or None.
    """

    rows: Tensor
    sums: Tensor
    bias: Tensor
    mu: Tensor | None
    gains: Tensor | None
    shape: tuple[int, int]
    z_mean: Tensor | None = None

    @classmethod
    def of(cls, op: LinearOp, mean_input: MeanInput | None, rows: Tensor | int) -> OpenFacts | None:
        """Facts of the weights as they are now, where they lie.

        Args:
            op: A parsed call; its weight is the effective one.
            mean_input: The merged mean input, or None for weights alone.
            rows: Rows behind the mean input (0: weights alone).

        Returns:
            The facts, or None for a weight that cannot be read (meta, quantised, complex, freed).
        """
        weight = op.weight
        if not is_readable(weight):
            return None
        unrolled = op.rows(weight)
        fan_in = unrolled.shape[1]
        mu = None if mean_input is None else mean_input.mean.to(weight.device).reshape(-1, fan_in)
        found = geometry.row_facts(unrolled, mu, _groups_of(op, unrolled))
        sums = torch.stack([found.norm2, found.row_sum, found.theta_ones, found.shift])
        spread = mean_input.spread if mean_input is not None else None
        gains = None if spread is None else torch.stack(spread.mean_gains(weight, found.columns))
        count = rows.double() if isinstance(rows, Tensor) else _scalar(rows)
        return cls(count, sums, _bias_of(op, sums), mu, gains, (op.groups, fan_in))

    def merge(self, other: OpenFacts) -> OpenFacts:
        """Row-weighted average, as :meth:`WeightFacts.merge`; both have rows."""
        total = self.rows + other.rows
        share = other.rows / total

        def mix(mine: Tensor | None, theirs: Tensor | None) -> Any:
            return mine if mine is None or theirs is None else mine + (theirs - mine) * share

        names = ("sums", "bias", "mu", "gains", "z_mean")
        mixed = {name: mix(getattr(self, name), getattr(other, name)) for name in names}
        return replace(self, rows=total, **mixed)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def closed(self) -> WeightFacts:
        """The facts; all tensors lie on the CPU."""
        norm2, row_sum, theta, shift = self.sums.numpy()
        groups, fan_in = self.shape
        outputs = len(norm2)
        if self.gains is None:
            # Every square enters one row and one column; groups partition the columns.
            eta = float(norm2.mean())
            xi = eta * outputs / (groups * fan_in)
        else:
            xi, eta = self.gains.tolist()
        return WeightFacts(
            *(int(self.rows), norm2, row_sum, theta, self.bias.numpy(), shift),
            mu=np.zeros((0, 0)) if self.mu is None else self.mu.numpy(),
            group=np.arange(outputs) // max(1, outputs // groups),
            xi=xi,
            eta_map=eta,
            z_mean=np.zeros(0) if self.z_mean is None else self.z_mean.numpy(),
        )


def close_facts(found: Mapping[str, OpenFacts]) -> dict[str, WeightFacts]:
    """Facts of many sites, brought to the CPU at once."""
    parts = [facts.tensors() for facts in found.values()]
    moved = groups_to_host([list(own.values()) for own in parts])
    closed = {}
    for (name, facts), own, there in zip(found.items(), parts, moved, strict=True):
        new: dict[str, Any] = dict(zip(own, there, strict=True))
        closed[name] = replace(facts, **new).closed()
    return closed


def weight_facts(op: LinearOp, mean_input: MeanInput | None, rows: int) -> WeightFacts | None:
    """Everything the report says of the weights of one site (see :meth:`OpenFacts.of`)."""
    found = OpenFacts.of(op, mean_input, rows)
    return None if found is None else close_facts({"": found})[""]


def _groups_of(op: LinearOp, rows: Tensor) -> Tensor | None:
    """Group of each weight row; None where there is one group only."""
    if op.groups == 1:
        return None
    return torch.arange(len(rows), device=rows.device) // max(1, len(rows) // op.groups)


def _bias_of(op: LinearOp, sums: Tensor) -> Tensor:
    """A copy of the biases, which train on; NaN where there are none."""
    outputs = sums.shape[1]
    if op.bias is None or not is_readable(op.bias):
        return sums.new_full((outputs,), torch.nan)
    bias = op.bias.detach().to(torch.float64, copy=True)
    return bias if bias.shape == (outputs,) else bias.expand(outputs).clone()


def _scalar(number: int) -> Tensor:
    return torch.tensor(float(number), dtype=torch.float64, device="cpu")
