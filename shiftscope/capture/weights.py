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
from shiftscope.geometry import PatchMap
from shiftscope.record import SiteInfo, SiteRecord, Stream, WeightFacts
from shiftscope.snapshot import Snapshot
from shiftscope.tally import Moments
from shiftscope.tally.transfer import groups_to_host

__all__ = [
    "MeanInput",
    "OpenFacts",
    "close_facts",
    "input_power",
    "is_readable",
    "rounding_scale",
    "weight_facts",
    "weights_only",
]

_CHUNK = 2**22
_SUM_ROUNDING = 4.0
"""Rounding of a sum of products, in units of one rounding of its terms, at the threshold of
``Moments.below_resolution``: collapsed float32 layers measure a noise of 1 to 2 eps·sqrt(sum w²a²),
so that a variance that is not flagged is within a few per cent of the exact one."""


@dataclass(frozen=True)
class MeanInput:
    """Mean input of a linear op, unrolled into patches for a convolution.

    Attributes:
        total: Sum over rows of the (unrolled) input, ``[groups, fan_in]`` in float64.
        rows: Rows behind it, a scalar tensor on the same device; samples for a convolution.
        spread: For convolutions the last :class:`PatchMap`, for the border-aware xi.
        moments: Moments of the products, for bilinear maps.
    """

    total: Tensor
    rows: Tensor
    spread: PatchMap | None = None
    moments: Stream | None = None

    @classmethod
    def of(cls, op: LinearOp, inputs: Tensor) -> MeanInput:
        """Mean input of one call.

        Args:
            op: The parsed call.
            inputs: Its input, ``[..., inputs]``, or channels in dimension ``op.x_dim``.
        """
        x = inputs.detach()
        if op.x2 is not None:
            return _of_products(x, op.x2.detach())
        if op.patches is None:
            features = x.movedim(op.x_dim, -1) if op.arrange_x is None else x
            return cls(*_finite_sum(features.reshape(-1, features.shape[-1]), op.groups))
        batch = x if op.batched else x.unsqueeze(0)
        spread = op.patches(tuple(int(n) for n in batch.shape[2:]))
        total, rows = _finite_sum(batch.flatten(1), 1)
        positions = 1
        for size in spread.output_size:
            positions *= size
        # The patch mean is linear in the image: unroll the summed image, not every sample.
        image = total.reshape(batch.shape[1:])
        return cls(spread.patch_mean(image) * positions, rows * positions, spread)

    def merge(self, other: MeanInput | None) -> MeanInput:
        """Add another call's rows."""
        if other is None:
            return self
        return MeanInput(
            self.total + other.total, self.rows + other.rows, self.spread, self.moments
        )

    @property
    def mean(self) -> Tensor:
        """The mean input ``[groups, fan_in]``; NaN without rows."""
        return self.total / self.rows


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


def weights_only(
    state: Mapping[str, Tensor], manifest: Mapping[str, object] | None = None
) -> Snapshot:
    """What weights alone can tell: norms, angles to 1, eta, xi, the LCW residual.

    Args:
        state: A state dict; matrices named ``*weight`` become linear sites.
        manifest: What to say of its origin.

    Returns:
        A snapshot without streams; everything that needs data is NaN.
    """
    records: dict[str, SiteRecord] = {}
    gaps = []
    for key, tensor in state.items():
        path, _, name = key.rpartition(".")
        if (
            not (name or key).endswith("weight")
            or tensor.dim() < 2
            or not tensor.is_floating_point()
        ):
            continue
        op = _bare_op(tensor, state.get(f"{path}.bias" if path else "bias"))
        facts = weight_facts(op, None, 0)
        if facts is None:
            gaps.append((key, "its weights cannot be read"))
            continue
        info = SiteInfo(
            path or key, "linear", op.op, path, *facts_shape(facts, op), order=len(records)
        )
        note = "weights only: no data were run"
        records[info.site] = SiteRecord(info, weights=facts, notes=(note,))
    seen = sum(
        state[f"{r.info.module}.weight" if r.info.module else "weight"].numel()
        for r in records.values()
    )
    total = sum(t.numel() for t in state.values() if t.dim() >= 2 and t.is_floating_point())
    coverage = {"parameters": {"seen": seen, "total": total}}
    return Snapshot(records, tuple(gaps), dict(manifest or {}) | {"weights_only": True}, coverage)


def facts_shape(facts: WeightFacts, op: LinearOp) -> tuple[int, int]:
    """Neurons and fan-in of a weight."""
    return len(facts.norm2), op.weight.numel() // max(1, len(facts.norm2))


def _bare_op(weight: Tensor, bias: Tensor | None) -> LinearOp:
    name = "linear" if weight.dim() == 2 else f"conv{min(weight.dim() - 2, 3)}d"
    fits = bias is not None and bias.shape == weight.shape[:1]
    return LinearOp(
        name, weight[:0], weight, bias if fits else None, -1, -1, lambda w: w.flatten(1)
    )


def _finite_sum(rows: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Sum of the rows that are finite throughout, in float64 and bounded memory."""
    width = rows.shape[1]
    total = torch.zeros(width, dtype=torch.float64, device=rows.device)
    count = torch.zeros((), dtype=torch.float64, device=rows.device)
    for part in rows.split(max(1, _CHUNK // max(1, width))):
        values = part.double()
        sound = torch.isfinite(values).all(dim=1, keepdim=True)
        total = total + torch.where(sound, values, 0.0).sum(dim=0)
        count = count + sound.sum()
    return total.reshape(groups, -1), count


def _of_products(x1: Tensor, x2: Tensor) -> MeanInput:
    left, right = x1.reshape(-1, x1.shape[-1]), x2.reshape(-1, x2.shape[-1])
    width = left.shape[1] * right.shape[1]
    moments = Moments.empty(width, left.device)
    total = torch.zeros(width, dtype=torch.float64, device=left.device)
    for one, two in zip(*(t.split(max(1, _CHUNK // width)) for t in (left, right)), strict=True):
        products = (one.double().unsqueeze(2) * two.double().unsqueeze(1)).flatten(1)
        moments = moments.merge(Moments.of(products))
        total = total + products.sum(dim=0)
    rows = torch.full((), float(len(left)), dtype=torch.float64, device=left.device)
    return MeanInput(total.reshape(1, -1), rows, None, Stream(moments))


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
