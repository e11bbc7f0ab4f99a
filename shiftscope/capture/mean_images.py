"""Mean input images of the convolutions of a window, from what was read anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.mean_inputs import MeanInput
from shiftscope.capture.site_state import SiteState

__all__ = ["Image", "MeanImages"]

Image = tuple[SiteState, LinearOp, Tensor, int, bool]
"""A site, its op, the mean image of a batch, its samples, and whether it is known to be finite."""


@dataclass
class _Sum:
    state: SiteState
    op: LinearOp
    total: Tensor
    samples: Tensor | float


class MeanImages:
    """Sums of input images of convolutions, one for each site and image size."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, tuple[int, ...]], _Sum] = {}

    def add(self, images: Sequence[Image]) -> None:
        """Add the mean images of the batches of one step."""
        sound: dict[tuple[int, torch.device, int], tuple[list[Tensor], list[Tensor]]] = {}
        times: dict[int, int] = {}
        for state, op, mean, samples, finite in images:
            if not finite:
                self._add_doubtful(state, op, mean.double(), samples)
                continue
            entry = self._entry(state, op, mean)
            entry.samples = entry.samples + samples
            # On a GPU the entries of one list are added at once: a total may stand there once.
            turn = times[id(entry)] = times.get(id(entry), 0) + 1
            totals, means = sound.setdefault((samples, mean.device, turn), ([], []))
            totals.append(entry.total)
            means.append(mean)
        for (samples, *_), (totals, means) in sound.items():
            torch._foreach_add_(totals, means, alpha=samples)  # a launch or two for all sites

    def _entry(self, state: SiteState, op: LinearOp, mean: Tensor) -> _Sum:
        key = (state.info.site, tuple(mean.shape))
        known = self._sums.get(key)
        if known is None:
            known = self._sums[key] = _Sum(state, op, torch.zeros_like(mean), 0.0)
        return known

    def _add_doubtful(self, state: SiteState, op: LinearOp, mean: Tensor, samples: int) -> None:
        """One that is not finite throughout is left out."""
        entry = self._entry(state, op, mean)
        if mean.is_cpu:
            if isfinite(mean.sum().item()):
                entry.total.add_(mean, alpha=samples)
                entry.samples = entry.samples + samples
            return
        finite = torch.isfinite(mean.sum())  # a device is not waited for
        entry.total.add_(torch.where(finite, mean, 0.0), alpha=samples)
        entry.samples = entry.samples + finite * float(samples)

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
            rows = _on_device(entry.samples, total)
            made = MeanInput(total, rows * positions, spread)
            entry.state.mean_input = made.merge(entry.state.mean_input)

    def clear(self) -> None:
        """Begin a new window."""
        self._sums.clear()


def _on_device(samples: Tensor | float, total: Tensor) -> Tensor:
    """A number in float64 where the total lies, without a copy that would wait for the device."""
    if isinstance(samples, Tensor):
        return samples.double()
    return total.new_full((), samples, dtype=torch.float64)
