"""Mean inputs of linear ops, from which their shifts are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.capture.linear_ops import LinearOp
from shiftscope.geometry import PatchMap
from shiftscope.record import Stream
from shiftscope.tally import Moments
from shiftscope.tally.transfer import to_devices

__all__ = ["MeanInput", "rows_input", "rows_inputs"]

_CHUNK = 2**22


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


def rows_input(op: LinearOp, moments: Moments) -> MeanInput:
    """The mean input of a linear map whose inputs are rows, from their moments."""
    rows = moments.count.max().double()
    mean = torch.where(moments.count > 0, moments.mean, 0.0)
    return MeanInput((mean * rows).reshape(op.groups, -1), rows)


def rows_inputs(found: Sequence[tuple[LinearOp, Moments]]) -> list[MeanInput]:
    """Likewise of many maps, each where its weight lies; nothing waits for a device."""
    made = [rows_input(op, moments) for op, moments in found]
    parts = [tensor for own in made for tensor in (own.total, own.rows)]
    moved = to_devices(parts, [op.weight.device for op, _ in found for _ in range(2)])
    return [MeanInput(*own) for own in zip(moved[::2], moved[1::2], strict=True)]


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
