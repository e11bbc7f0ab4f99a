"""Mean inputs of a window, from what was read anyway."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.recorder import SiteState
from shiftscope.capture.weights import MeanInput
from shiftscope.tally import Moments

__all__ = ["MeanImages", "rows_input"]


def rows_input(op: LinearOp, moments: Moments) -> MeanInput:
    """The mean input of a linear map whose inputs are rows, from their moments."""
    rows = moments.count.max().double()
    mean = torch.where(moments.count > 0, moments.mean, 0.0)
    return MeanInput((mean * rows).reshape(op.groups, -1), rows)


@dataclass
class _Sum:
    state: SiteState
    op: LinearOp
    total: Tensor
    samples: Tensor


class MeanImages:
    """Sums of input images of convolutions, one for each site and image size."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, tuple[int, ...]], _Sum] = {}

    def add(self, state: SiteState, op: LinearOp, mean: Tensor, samples: int) -> None:
        """Add the mean image of one batch; one that is not finite throughout is left out."""
        mean = mean.double()
        finite = torch.isfinite(mean.sum())
        if finite.device.type != "cpu" or not bool(finite):  # a device is not waited for
            mean = torch.where(finite, mean, 0.0)
        key = (state.info.site, tuple(mean.shape))
        known = self._sums.get(key)
        if known is None:
            self._sums[key] = _Sum(state, op, mean * samples, finite * float(samples))
        else:
            known.total.add_(mean, alpha=samples)
            known.samples = known.samples + finite * float(samples)

    def hand_out(self) -> None:
        """Give every site its mean input, unrolled into patches."""
        for entry in self._sums.values():
            entry.state.mean_input = None
        for (_, shape), entry in self._sums.items():
            if entry.op.patches is None:
                continue
            spread = entry.op.patches(tuple(shape[1:]))
            positions = 1
            for size in spread.output_size:
                positions *= size
            total = spread.patch_mean(entry.total) * positions
            made = MeanInput(total, (entry.samples * positions).double(), spread)
            entry.state.mean_input = made.merge(entry.state.mean_input)

    def clear(self) -> None:
        """Begin a new window."""
        self._sums.clear()
