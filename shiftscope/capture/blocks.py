"""Adding up the readings of many steps of the same structure, all sites at once, in float64.

As in :mod:`shiftscope.capture.totals`, what one stream has in one step is merged, and steps are
averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.readings import RAW, Reading
from shiftscope.capture.totals import Total, groups_of, places_of
from shiftscope.tally import Moments
from shiftscope.tally.transfer import to_devices

__all__ = ["BIG", "COARSE", "HOPELESS", "LOST", "SMALL", "Block", "Key"]

SMALL, COARSE, LOST, BIG, HOPELESS = 1, 2, 4, 8, 16
"""Squares underflowed; spread near the rounding of the mean; values that are not finite; values so
large that they cannot be multiplied up; spread that is rounding of the values themselves."""
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
        self.starts = [0, *self.ends[:-1]]
        device = readings[0].mean.device
        self._widths = _placed(torch.tensor(widths, device="cpu"), device)
        self.single, self.groups = groups_of(key[0], key[1], widths)
        grouped = sum(group.width for group in self.groups)
        self._turns = [*self._members(device)]
        # Of the readings, and of the groups behind them.
        self.record = torch.zeros((3, self.ends[-1] + grouped), dtype=torch.float64, device=device)
        zeros = torch.zeros(self.ends[-1], dtype=torch.float64, device=device)
        self.lost = zeros.clone()
        self.first = torch.full_like(zeros, -1.0)
        self.doubt = torch.zeros(self.ends[-1], dtype=torch.bool, device=device)
        single = any(eps > torch.finfo(torch.float64).eps for _, eps in key[2])
        self._small = _SMALL if single else _SMALL_DOUBLE
        self._work = torch.empty((4, self.ends[-1]), dtype=torch.float64, device=device)
        self._flags = torch.empty((2, self.ends[-1]), dtype=torch.bool, device=device)
        self._joined = torch.empty_like(zeros, dtype=torch.float32)
        self._gradient = self._columns([float(flag) for flag in gradient])
        self._constants: tuple[Any, tuple[Any, ...]] | None = None

    def add(
        self, readings: Sequence[Reading], inverse: Tensor | None, step: int = 0
    ) -> Tensor | None:
        """Add one step.

        Args:
            readings: Its readings, in the order of the key.
            inverse: One over the loss scale, or None.
            step: Its number.

        Returns:
            ``[columns]`` uint8 sum of :data:`SMALL`, :data:`COARSE`, :data:`LOST` and :data:`BIG`;
            None where nothing is to be mended.
        """
        rows, bound, least, shrink, several = self._per_column(readings)
        mean = self._gathered([r.mean for r in readings], 0)
        variance = self._gathered([r.variance for r in readings], 1)
        finite = self._finite(mean, variance)
        if finite is not None:
            mean.nan_to_num_(0.0, 0.0, 0.0).mul_(finite)
            variance.nan_to_num_(0.0, 0.0, 0.0).mul_(finite)
            rows = rows * finite
            self.lost += ~finite
            self.first.masked_fill_(~finite & (self.first < 0), float(step))
        codes = self._judged(mean, variance, (bound, least), finite, several)
        factor = self._factor(shrink, inverse)
        if factor is not None:
            mean.mul_(factor)
            variance.mul_(factor).mul_(factor)
        if self.groups:
            self._join(self.record[:, self.ends[-1] :], *self._of_groups(rows, mean, variance))
        m2 = torch.mul(variance, rows, out=variance)
        self._join(self.record[:, : self.ends[-1]], rows, mean, m2)
        self.steps += 1
        return codes

    def _gathered(self, parts: list[Tensor], place: int) -> Tensor:
        """The parts end to end in float64, in memory that is used again every step."""
        dtype = parts[0].dtype
        if dtype != self._joined.dtype:
            self._joined = torch.empty_like(self.lost, dtype=dtype)
        if all(part.dtype is dtype for part in parts):
            torch.cat(parts, out=self._joined)
            return self._work[place].copy_(self._joined)
        return self._work[place].copy_(torch.cat(parts))

    def _judged(
        self,
        mean: Tensor,
        variance: Tensor,
        bound: tuple[Tensor, Tensor],
        finite: Tensor | None,
        several: Tensor | None,
    ) -> Tensor | None:
        square, bounds = self._work[2], self._work[3]
        torch.mul(mean, mean, out=square)
        torch.mul(square, bound[0], out=bounds)
        coarse = torch.lt(variance, bounds, out=self._flags[0])
        small = torch.lt(variance, self._small, out=self._flags[1])
        if several is not None:  # the variance of a single row is 0, and no doubt about it
            coarse &= several
            small &= several
        if bool(small.any()) if small.device.type == "cpu" else True:
            small &= torch.add(square, variance, out=bounds) > 0
        self.doubt |= coarse
        self.doubt |= small
        if finite is None and not bool(coarse.any()) and not bool(small.any()):
            return None  # on the CPU, where asking costs nothing
        hopeless = variance < torch.mul(square, bound[1], out=bounds)
        if several is not None:
            hopeless &= several
        coarse &= ~(hopeless | small)
        codes = coarse.to(torch.uint8).mul_(COARSE)
        for flag, code in ((small, SMALL), (hopeless, HOPELESS)):
            codes.add_(flag, alpha=code)
        codes.add_(square.add_(variance) > _BIG, alpha=BIG)
        if finite is not None:
            codes.add_(~finite, alpha=LOST)
        return codes

    def _factor(self, shrink: Tensor | None, inverse: Tensor | None) -> Tensor | None:
        if inverse is None:
            return shrink
        scale = torch.where(self._gradient > 0, inverse.to(self._gradient.device), 1.0)
        return scale if shrink is None else scale * shrink

    @staticmethod
    def _join(to: Tensor, rows: Tensor, mean: Tensor, m2: Tensor) -> None:
        """Average a step into a record; how far the means have moved is no variance."""
        to[0].add_(rows)
        share = rows / to[0].clamp(min=1.0)
        to[1].addcmul_(mean - to[1], share)
        to[2].add_(m2)

    def _of_groups(
        self, rows: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and m2 of each group in one step (Chan, Golub, LeVeque 1983)."""
        count, middle, m2 = (torch.zeros_like(self.record[0, self.ends[-1] :]) for _ in range(3))
        for index, there in self._turns:
            more = rows[index] * there
            before, count = count, count + more
            step = mean[index] - middle
            share = more / count.clamp(min=1.0)
            middle = middle + step * share
            m2 = m2 + variance[index] * more + step.square() * share * before
        return count, middle, m2

    def _members(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the first reading of each group, the second, ...: its columns, and if there is one."""
        most = max((len(group.numbers) for group in self.groups), default=0)
        for turn in range(most):
            columns: list[int] = []
            there: list[float] = []
            for group in self.groups:
                known = turn < len(group.numbers)
                start = self.starts[group.numbers[turn]] if known else 0
                columns += range(start, start + group.width) if known else [0] * group.width
                there += [float(known)] * group.width
            yield (
                _placed(torch.tensor(columns, device="cpu"), device),
                _placed(torch.tensor(there, dtype=torch.float64, device="cpu"), device),
            )

    def _finite(self, mean: Tensor, variance: Tensor) -> Tensor | None:
        """``[columns]`` bool, or None where everything is known to be finite."""
        if mean.device.type == "cpu" and bool(torch.isfinite(mean.sum() + variance.sum())):
            return None
        return torch.isfinite(mean) & torch.isfinite(variance)

    def _per_column(self, readings: Sequence[Reading]) -> tuple[Any, ...]:
        """Rows, bounds of var/mean^2, 1/gain and whether there are several rows, of each column.

        Made anew only when they change.
        """
        facts = tuple([(r.rows, r.error, r.gain, r.eps) for r in readings])
        if self._constants is None or self._constants[0] != facts:
            gains = [1.0 / gain for _, _, gain, _ in facts]
            several = [float(rows > 1) for rows, *_ in facts]
            columns = (
                self._columns([float(rows) for rows, *_ in facts]),
                self._columns([(DOUBT * error) ** 2 for _, error, *_ in facts]),
                # What lies below the resolution of the numbers no other reading would mend.
                self._columns([0.0 if f[1] == RAW else (2 * f[3]) ** 2 for f in facts]),
                self._columns(gains) if any(gain != 1.0 for gain in gains) else None,
                self._columns(several) > 0 if 0.0 in several else None,
            )
            self._constants = (facts, columns)
        return self._constants[1]

    def _columns(self, values: list[float]) -> Tensor:
        made = torch.tensor(values, dtype=torch.float64, device="cpu")
        each = _placed(made, self._widths.device)
        return each.repeat_interleave(self._widths, output_size=self.ends[-1])

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """What :meth:`moments` and :meth:`totals` are taken from, where it lies."""
        return self.record, self.doubt, self.lost, self.first

    def moments(self, columns: Sequence[Tensor]) -> Iterator[tuple[int, Moments]]:
        """Averages over the steps so far for each stream; nothing waits for the device.

        Args:
            columns: Those of this object, or copies of them elsewhere.
        """
        (count, mean, m2), doubt = columns[:2]
        mean = torch.where(count > 0, mean, torch.nan)
        std = (m2 / count.clamp(min=1.0)).sqrt()
        scale = torch.maximum(mean.nan_to_num().abs(), std)
        count = count.long()
        for slot, numbers, at in places_of(self.single, self.groups, self.ends):
            eps = max(self.key[2][number][1] for number in numbers)
            # A doubted column says so whatever it is merged with: its spread is below 4 eps·scale.
            told = std[at] / (2 * eps) + torch.finfo(torch.float32).tiny
            doubted = torch.stack([doubt[part] for part in self._parts(numbers)]).any(0)
            size = torch.where(doubted, torch.maximum(scale[at], told), scale[at])
            yield slot, Moments(count[at], mean[at], m2[at], eps, size)

    def totals(self, columns: Sequence[Tensor]) -> Iterator[Total]:
        """What all steps gave, for each stream; ``lost`` are whole readings.

        Args:
            columns: Those of this object, on the CPU.
        """
        _, _, lost, first = columns
        places = places_of(self.single, self.groups, self.ends)
        for (_, numbers, _), (slot, moments) in zip(places, self.moments(columns), strict=True):
            own = self._parts(numbers)
            since = torch.cat([first[part] for part in own])
            known = since[since >= 0]
            yield Total(
                *(slot, moments, torch.stack([lost[part] for part in own]).sum(0)),
                int(known.min()) if len(known) else -1,
            )

    def _parts(self, numbers: Sequence[int]) -> list[slice]:
        """The columns of some readings."""
        return [slice(self.starts[number], self.ends[number]) for number in numbers]


def _placed(made: Tensor, device: torch.device) -> Tensor:
    """A table made on the CPU, where it is used; the step that needs it waits for no device."""
    return to_devices([made], [device])[0]
