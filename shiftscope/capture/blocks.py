"""Merging the readings of many steps of the same structure, all sites at once, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.readings import RAW, Reading
from shiftscope.tally import Moments

__all__ = ["BIG", "COARSE", "LOST", "SMALL", "Block", "Key"]

SMALL, COARSE, LOST, BIG = 1, 2, 4, 8
"""Squares underflowed; spread near the rounding of the mean; values that are not finite; values so
large that they cannot be multiplied up."""
_BIG = 1e-3

Key = tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, float], ...]]
"""Slots in order of writing, number of the reading each one got, width and eps of each reading."""

DOUBT = 10.0
"""A spread below so many roundings of the mean is doubted: their square is 1 % of the variance."""
_SMALL, _SMALL_DOUBLE = 1e-34, 1e-290
"""A variance below this was summed from squares some of which underflowed."""


class Block:
    """Accumulators over the columns of all readings of a step, for steps of one structure.

    Args:
        key: The structure.
        readings: The readings of the first step.
        gradient: For each reading whether it is a gradient, to be divided by the loss scale.
    """

    def __init__(self, key: Key, readings: Sequence[Reading], gradient: Sequence[bool]) -> None:
        self.key = key
        self.steps = 0
        widths = [width for width, _ in key[2]]
        self.ends = list(accumulate(widths))
        device = readings[0].mean.device
        self._widths = torch.tensor(widths, device=device)
        zeros = torch.zeros(self.ends[-1], dtype=torch.float64, device=device)
        self.count, self.mean, self.m2 = zeros, zeros.clone(), zeros.clone()
        self.lost = zeros.clone()
        self.doubt = torch.zeros(self.ends[-1], dtype=torch.bool, device=device)
        single = any(eps > torch.finfo(torch.float64).eps for _, eps in key[2])
        self._small = _SMALL if single else _SMALL_DOUBLE
        self._gradient = self._columns([float(flag) for flag in gradient])
        self._constants: tuple[Any, tuple[Any, ...]] | None = None

    def add(self, readings: Sequence[Reading], inverse: Tensor | None) -> Tensor | None:
        """Merge one step (Chan, Golub, LeVeque 1983).

        Args:
            readings: Its readings, in the order of the key.
            inverse: One over the loss scale, or None.

        Returns:
            ``[columns]`` uint8 sum of :data:`SMALL`, :data:`COARSE`, :data:`LOST` and :data:`BIG`;
            None where nothing is to be mended.
        """
        rows, bound, least, shrink = self._per_column(readings)
        mean = torch.cat([r.mean for r in readings]).double()
        variance = torch.cat([r.variance for r in readings]).double()
        finite = self._finite(mean, variance)
        if finite is not None:
            mean, variance = (torch.where(finite, t, 0.0) for t in (mean, variance))
            rows = rows * finite
            self.lost += ~finite
        codes = self._judged(mean, variance, (bound, least), finite)
        factor = self._factor(shrink, inverse)
        if factor is not None:
            mean, variance = mean * factor, variance * factor.square()
        self._merge(rows, mean, variance)
        self.steps += 1
        return codes

    def _judged(
        self, mean: Tensor, variance: Tensor, bound: tuple[Tensor, Tensor], finite: Tensor | None
    ) -> Tensor | None:
        square = mean.square()
        bounds = bound[0] * square
        small = (variance < self._small) & (square + variance > 0)
        coarse = variance < bounds
        doubt = small | coarse
        self.doubt |= doubt
        if finite is None and not bool(doubt.any()):  # on the CPU: asking costs nothing
            return None
        coarse &= (variance >= bound[1] * square) & ~small
        lost = 0 if finite is None else LOST * ~finite
        big = BIG * (square + variance > _BIG)
        return (SMALL * small + COARSE * coarse + big + lost).to(torch.uint8)

    def _factor(self, shrink: Tensor | None, inverse: Tensor | None) -> Tensor | None:
        if inverse is None:
            return shrink
        scale = torch.where(self._gradient > 0, inverse, 1.0)
        return scale if shrink is None else scale * shrink

    def _merge(self, rows: Tensor, mean: Tensor, variance: Tensor) -> None:
        before = self.count
        self.count = before + rows
        share = rows / self.count.clamp(min=1.0)
        step = mean.sub_(self.mean)
        self.m2.addcmul_(variance, rows)
        self.mean.addcmul_(step, share)
        self.m2.addcmul_(step.square_(), share.mul_(before))

    def _finite(self, mean: Tensor, variance: Tensor) -> Tensor | None:
        """``[columns]`` bool, or None where everything is known to be finite."""
        if mean.device.type == "cpu" and bool(torch.isfinite(mean.sum() + variance.sum())):
            return None
        return torch.isfinite(mean) & torch.isfinite(variance)

    def _per_column(self, readings: Sequence[Reading]) -> tuple[Any, ...]:
        """Rows, bounds of var/mean^2 and 1/gain of each column; made anew only when they change."""
        facts = tuple([(r.rows, r.error, r.gain, r.eps) for r in readings])
        if self._constants is None or self._constants[0] != facts:
            gains = [1.0 / gain for _, _, gain, _ in facts]
            columns = (
                self._columns([float(rows) for rows, *_ in facts]),
                self._columns([(DOUBT * error) ** 2 for _, error, *_ in facts]),
                # What lies below the resolution of the numbers no other reading would mend.
                self._columns([0.0 if f[1] == RAW else (2 * f[3]) ** 2 for f in facts]),
                self._columns(gains) if any(gain != 1.0 for gain in gains) else None,
            )
            self._constants = (facts, columns)
        return self._constants[1]

    def _columns(self, values: list[float]) -> Tensor:
        each = torch.tensor(values, dtype=torch.float64, device=self._widths.device)
        return each.repeat_interleave(self._widths, output_size=self.ends[-1])

    def slots(self) -> Iterator[tuple[int, slice]]:
        """Every write of a step: its slot, and the columns of the reading it got."""
        for slot, number in zip(self.key[0], self.key[1], strict=True):
            yield slot, slice(self.ends[number] - self.key[2][number][0], self.ends[number])

    def totals(self) -> Iterator[tuple[int, Moments, Tensor]]:
        """Slot, moments over all steps, and number of readings left out as not finite."""
        moved = [t.detach().cpu() for t in (self.count, self.mean, self.m2, self.lost, self.doubt)]
        count, mean, m2, lost, doubt = moved
        mean = torch.where(count > 0, mean, torch.nan)
        std = (m2 / count.clamp(min=1.0)).sqrt()
        scale = torch.maximum(mean.nan_to_num().abs(), std)
        for number, (width, eps) in enumerate(self.key[2]):
            at = slice(self.ends[number] - width, self.ends[number])
            # A doubted column says so whatever it is merged with: its spread is below 4 eps·scale.
            told = std[at] / (2 * eps) + torch.finfo(torch.float32).tiny
            scale[at] = torch.where(doubt[at], torch.maximum(scale[at], told), scale[at])
        for (slot, at), number in zip(self.slots(), self.key[1], strict=True):
            eps = self.key[2][number][1]
            yield slot, Moments(count[at].long(), mean[at], m2[at], eps, scale[at]), lost[at]
