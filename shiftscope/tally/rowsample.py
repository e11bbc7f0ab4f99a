"""A random sample of whole rows that merges exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftscope.errors import UsageError
from shiftscope.tally.base import Tally
from shiftscope.tally.layout import Layout

__all__ = ["RowSample"]

_COLUMNS = 4096
"""Neurons sorted at once when quantiles are read off."""


@dataclass(frozen=True, eq=False)
class RowSample(Tally):
    """The `size` rows with the smallest seeded priorities, in the order of priority.

    The priority of a row is a hash of the seed and of its number in the whole stream. Different
    rows never tie, so the sample does not depend on how the stream was cut, and torch's random
    numbers are not touched.

    Args:
        priority: [kept] int64, ascending.
        rows: [kept, neurons] in the dtype of the source.
        size: Most rows to keep.
        seed: Seed of the priorities.
        seen: Rows seen so far.
    """

    priority: Tensor
    rows: Tensor
    size: int
    seed: int
    seen: int

    @classmethod
    def empty(
        cls, neurons: int, size: int, seed: int = 0, device: torch.device | str = "cpu"
    ) -> RowSample:
        """The tally of no rows.

        Args:
            neurons: Number of neurons.
            size: Most rows to keep.
            seed: Seed of the priorities.
            device: Where the tensors are to lie.

        Returns:
            The identity of `merge` among samples of this size and seed.
        """
        rows = torch.zeros((0, neurons), dtype=torch.uint8, device=device)
        return cls(torch.zeros(0, dtype=torch.int64, device=device), rows, size, seed, 0)

    @classmethod
    def of(
        cls, x: Tensor, size: int, seed: int = 0, start: int = 0, feature_dim: int = -1
    ) -> RowSample:
        """Sample the rows of a tensor.

        Args:
            x: Rows of any real dtype; all dimensions but `feature_dim` are rows, batch-major.
            size: Most rows to keep.
            seed: Seed of the priorities; the same for all parts of a stream.
            start: Number of the first row in the whole stream; parts must not overlap.
            feature_dim: The dimension of the neurons.

        Returns:
            The sample, on the device of `x`; exact (all rows) where they are no more than `size`.

        Raises:
            UsageError: `x` has no neurons along `feature_dim`, or `size` is negative.
            MeasureError: `x` is complex or sparse.
        """
        if size < 0:
            raise UsageError(f"a sample of {size} rows is not possible", "Give size >= 0.")
        layout = Layout.of(x, feature_dim)
        numbers = torch.arange(start, start + layout.rows, device=x.device)
        kept = min(size, layout.rows)
        priority, at = _priority(numbers, seed).topk(kept, largest=False, sorted=True)
        return cls(priority, layout.take(at), size, seed, layout.rows)

    def merge(self, other: RowSample) -> RowSample:
        """The sample of both streams of rows.

        Args:
            other: A sample of other rows of the same stream: same neurons, seed and device.

        Returns:
            The rows of smallest priority of both, no more than the smaller of the two sizes.

        Raises:
            UsageError: The numbers of neurons or the seeds differ.
        """
        return self.merge_all([other])

    def merge_all(self, others: Sequence[RowSample]) -> RowSample:
        """Likewise, of many streams at once: their rows are sorted once.

        Args:
            others: Samples of other rows of the same stream.

        Returns:
            What merging them one after the other gives.

        Raises:
            UsageError: The numbers of neurons or the seeds differ.
        """
        if not others:
            return self
        for other in others:
            self._check_fits(other, self.rows, other.rows)
            if self.seed != other.seed:
                raise UsageError(
                    f"cannot merge row samples of the seeds {self.seed} and {other.seed}",
                    "Use one seed for all parts of a stream.",
                )
        parts = [self, *others]
        size, seen = min(part.size for part in parts), sum(part.seen for part in parts)
        priority, at = torch.cat([part.priority for part in parts]).sort(stable=True)
        rows = torch.cat([part.rows for part in parts])[at[:size]]
        return RowSample(priority[:size], rows, size, self.seed, seen)

    def thin(self, size: int) -> RowSample:
        """A smaller sample, as if it had been drawn with this size.

        Args:
            size: Most rows to keep.

        Returns:
            The `size` rows of smallest priority.
        """
        size = min(size, self.size)
        if self.kept <= size:
            return replace(self, size=size)
        kept = self.rows[:size].clone()  # the rest can go
        return RowSample(self.priority[:size].clone(), kept, size, self.seed, self.seen)

    @property
    def kept(self) -> int:
        """Number of rows in the sample."""
        return self.rows.shape[0]

    @property
    def exact(self) -> bool:
        """Whether the sample holds every row seen."""
        return self.kept == self.seen

    def quantiles(self, qs: Sequence[float]) -> NDArray[np.float64]:
        """Quantiles of each neuron, interpolated linearly; waits for the device.

        Args:
            qs: Fractions in 0..1.

        Returns:
            [len(qs), neurons]; NaN elements are left out, and NaN stands where none is left.

        Raises:
            UsageError: A fraction lies outside 0..1.

        Source: Hyndman, Fan, "Sample quantiles in statistical packages" (1996), definition 7.
        """
        fractions = np.asarray(qs, dtype=np.float64).reshape(-1)
        if not np.all((fractions >= 0) & (fractions <= 1)):
            raise UsageError(f"quantiles {list(qs)} reach outside 0..1", "Give fractions in 0..1.")
        rows = self.rows.detach().cpu()
        rows = rows if rows.dtype == torch.float64 else rows.float()
        columns = [part.T.contiguous().numpy() for part in rows.split(_COLUMNS, dim=1)]
        parts = [_quantiles(part, fractions) for part in columns]
        return np.concatenate(parts, axis=1)


def _priority(numbers: Tensor, seed: int) -> Tensor:
    """Splitmix64's finaliser of each row number, shifted by the hashed seed: a bijection.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    return _mix(numbers * _signed(0x9E3779B97F4A7C15) + _signed(_seed_hash(seed)))


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shifted(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shifted(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _seed_hash(seed: int) -> int:
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    return value ^ (value >> 31)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _quantiles(
    columns: NDArray[np.floating], fractions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Quantiles [len(fractions), neurons] of [neurons, rows], which are sorted in place."""
    neurons, rows = columns.shape
    if rows == 0:
        return np.full((len(fractions), neurons), np.nan)
    columns.sort(axis=1)  # NaN goes to the end
    # The same places in all neurons, but for those that have fewer numbers.
    position = fractions * (rows - 1)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, rows - 1)
    result = _between(columns[:, low].T, columns[:, high].T, (position - low)[:, None])
    lost = np.isnan(columns[:, -1])
    if lost.any():
        result[:, lost] = _of_fewer(columns[lost], fractions[:, None])
    return result


def _of_fewer(ordered: NDArray[np.floating], fractions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles of rows in order that end in NaN."""
    last = np.maximum((~np.isnan(ordered)).sum(1) - 1, 0)
    position = fractions * last
    low = np.floor(position).astype(np.int64)
    at = np.arange(len(ordered))
    return _between(ordered[at, low], ordered[at, np.minimum(low + 1, last)], position - low)


def _between(
    below: NDArray[np.floating], above: NDArray[np.floating], part: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Some part of the way from one number to the next."""
    below, above = below.astype(np.float64), above.astype(np.float64)
    with np.errstate(invalid="ignore"):  # next to an infinity, only a true fraction is moved
        moved = below + (above - below) * part
    return np.asarray(np.where((below == above) | (part == 0), below, moved))
