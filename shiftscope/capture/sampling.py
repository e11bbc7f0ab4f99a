"""Row samples of the steps that are recorded in detail, for quantiles, fractions and pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.readings import IMAGE, ROWS
from shiftscope.capture.recorder import RANK_STRIDE, Settings
from shiftscope.tally import RowSample
from shiftscope.tally.transfer import tallies_to_host

__all__ = ["PICTURE_ROWS", "Sampler"]

PICTURE_ROWS = 128
"""Rows kept of the inputs of linear sites, for the heat maps."""
_ELEMENTS = 2**21


class Sampler:
    """Draws rows by seeded priorities; drawn rows count only once their step is kept.

    Args:
        settings: Size and seed of the samples, and the rank.

    Attributes:
        waiting: Bytes of what was drawn since the last step was kept.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._kept: dict[int, RowSample] = {}
        self._drawn: list[tuple[int, RowSample]] = []
        self._shared: dict[int, tuple[Any, int, RowSample]] = {}
        self._seen: dict[int, int] = {}
        self._rows: dict[int, int] = {}
        self.waiting = 0
        self._order: tuple[tuple[Any, ...], RowSample] | None = None

    def draw(
        self, slot: int, tensor: Tensor, kind: int, dim: int, reading: Any, rows: int | None = None
    ) -> RowSample | None:
        """A sample of the rows of a tensor; one that was just read elsewhere is not copied again.

        Args:
            slot: The stream it belongs to.
            tensor: ``[..., neurons]``, or channels in dimension 1 or ``dim``.
            kind: How the neurons lie.
            dim: Their dimension where it is neither.
            reading: What :meth:`LeanRecorder.look` gave for it; None for no rows.
            rows: Most rows to draw.
        """
        if reading is None:
            return None
        values, place = tensor.detach(), -1 if kind == ROWS else (1 if kind == IMAGE else dim)
        width = values.shape[place]
        room = min(_ELEMENTS, self.settings.sample_budget // 16) // max(1, width)
        size = min(rows or self.settings.rows, self.settings.rows, max(64, room))
        start = self._seen.get(slot, 0) + self._rows.get(slot, 0)
        start += self.settings.rank * RANK_STRIDE
        known = self._shared.get(id(reading))
        if known is not None and known[0] is reading and known[1:] and known[1] == start:
            sample = known[2]
            return sample if sample.size <= size else sample.thin(size)
        sample = self._rows_of(values, place, size, start)
        self._shared[id(reading)] = (reading, start, sample)
        return sample

    def put(self, slot: int, sample: RowSample | None) -> None:
        """Keep a drawn sample, if its step is kept."""
        if sample is not None:
            self._drawn.append((slot, sample))
            self._rows[slot] = self._rows.get(slot, 0) + sample.seen
            self.waiting += sample.rows.nbytes

    def keep(self) -> None:
        """The step ended well, or is so long that what was drawn is put together before its end."""
        drawn = self._drawn
        self._drawn = []
        self.drop()
        of_slot: dict[int, list[RowSample]] = {}
        for slot, sample in drawn:
            before = self._kept.get(slot)
            own = of_slot.setdefault(slot, [] if before is None else [before])
            if not own or own[0].rows.shape[1] == sample.rows.shape[1]:
                own.append(sample)
            self._seen[slot] = self._seen.get(slot, 0) + sample.seen
        for slot, (first, *others) in of_slot.items():
            self._kept[slot] = first.merge_all(others)

    @property
    def drawn(self) -> int:
        """Number of samples drawn since the last step was kept."""
        return len(self._drawn)

    def take_back(self, number: int) -> None:
        """Keep the first samples that were drawn, and none of those after."""
        for slot, sample in self._drawn[number:]:
            self._rows[slot] -= sample.seen
            self.waiting -= sample.rows.nbytes
        del self._drawn[number:]

    def drop(self) -> None:
        """The step is set apart."""
        self._drawn.clear()
        self._shared.clear()
        self._rows.clear()
        self.waiting = 0

    def to_host(self) -> dict[int, RowSample]:
        """What was kept of each stream, on the CPU; streams may share a sample."""
        distinct = {id(sample): sample for sample in self._kept.values()}
        moved = dict(zip(distinct, tallies_to_host(list(distinct.values())), strict=True))
        return {slot: moved[id(sample)] for slot, sample in self._kept.items()}

    def clear(self) -> None:
        """Begin a new window."""
        self.drop()
        self._kept.clear()

    def _rows_of(self, values: Tensor, place: int, size: int, start: int) -> RowSample:
        if values.dim() != 2 or place not in (-1, 1):
            return RowSample.of(values, size, self.settings.seed, start, place)
        count = values.shape[0]
        key = (count, size, start, values.device)
        known = self._order  # read once: another thread may put its own there meanwhile
        if known is None or known[0] != key:
            numbers = torch.arange(count, dtype=torch.float64, device=values.device).unsqueeze(1)
            known = self._order = (key, RowSample.of(numbers, size, self.settings.seed, start))
        order = known[1]
        rows = values.index_select(0, order.rows[:, 0].long())
        return RowSample(order.priority, rows, order.size, order.seed, order.seen)
