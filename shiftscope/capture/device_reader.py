"""Reading on a GPU by Triton kernels: one launch for a tensor, one more at the end of a step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.readings import IMAGE, ROWS, is_channels_last
from shiftscope.capture.totals import PagedReader, Structure, Totals
from shiftscope.tally.device import DeviceReader, usable
from shiftscope.tally.device_pages import Page, Parts
from shiftscope.tally.device_record import DeviceRecord
from shiftscope.tally.steps import Write

__all__ = ["DeviceReaders", "Parts"]

_FACT = attrgetter("offset", "width", "parts", "rows")


class DeviceReaders:
    """One reader for each GPU; other devices, and a GPU Triton fails on, have none.

    Args:
        looks: Functions that read a tensor whose form is known from a step before; those of the
            readers are added.
    """

    def __init__(self, looks: list[Any] | None = None) -> None:
        self._looks: list[Any] = [] if looks is None else looks
        self._readers: dict[torch.device, _Reader | None] = {}
        self._failed: set[torch.device] = set()

    def read(self, x: Tensor, slot: int, kind: int, image: bool) -> Any:
        """Read a tensor whose neurons lie in the last dimension or the second.

        Args:
            x: The tensor.
            slot: Where the reading will be written.
            kind: How its neurons lie.
            image: Whether the mean over samples at each position is wanted as well.

        Returns:
            Where its moments will stand; None where it must be read otherwise.
        """
        device = x.device
        try:
            reader = self._readers[device]
        except KeyError:
            reader = self._make(device)
        if reader is None or device in self._failed or not _addressable(x):
            return None
        try:
            return reader.read_any(x, slot, kind, image)
        except torch.OutOfMemoryError:
            return None  # torch's kernels may need less
        except Exception as error:
            # Triton compiles when it is first called: no C compiler, a GPU it does not know, ...
            # Training goes on, and torch's own kernels read from now on.
            self._give_up(device, error)
            return None

    def _make(self, device: torch.device) -> _Reader | None:
        made = _Reader(device) if usable(device) else None
        kept = self._readers.setdefault(device, made)
        if made is not None and kept is made:
            self._looks.insert(0, made.look)
        return kept

    def _give_up(self, device: torch.device, error: Exception) -> None:
        self._failed.add(device)
        reader = self._readers.get(device)
        if reader is not None and reader.look in self._looks:
            self._looks.remove(reader.look)
        warnings.warn(
            f"shiftscope reads on {device} by torch's kernels, in more passes: Triton failed "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]})",
            RuntimeWarning,
            stacklevel=3,
        )

    @property
    def used(self) -> int:
        """Columns of readings that wait to be merged."""
        return sum(reader.used for reader in self._known())

    def merge(
        self,
        writes: list[Write],
        gradient: Sequence[bool],
        inverse: Tensor | None,
        step: int,
    ) -> Iterator[Totals]:
        """Merge a step (see :meth:`PagedReader.merge`)."""
        for reader in self._known():
            scale = None if inverse is None else inverse.to(reader.device)
            try:
                yield from reader.merge(writes, gradient, scale, step)
            except torch.OutOfMemoryError:  # perhaps not in the next one
                warnings.warn(
                    f"shiftscope left out step {step} on {reader.device}: out of memory",
                    RuntimeWarning,
                    stacklevel=3,
                )
            except Exception as error:  # this step is lost, and training goes on
                self._give_up(reader.device, error)

    def opened(self) -> list[Totals]:
        """The accumulators of the steps so far, which go on."""
        return [totals for reader in self._known() for totals in reader.opened()]

    def close(self) -> list[Totals]:
        """The accumulators of the steps so far; new ones begin."""
        return [totals for reader in self._known() for totals in reader.close()]

    def clear(self) -> None:
        """Forget the readings of the running step."""
        for reader in self._known():
            reader.clear()

    def _known(self) -> list[_Reader]:
        return [reader for reader in list(self._readers.values()) if reader is not None]


def _addressable(x: Tensor) -> bool:
    """Whether the numbers of a tensor lie where its address says."""
    plain = type(x) is Tensor or type(x) is torch.nn.Parameter
    return plain and x.layout is torch.strided and not (x.is_nested or x.is_neg())


class _Reader(DeviceReader, PagedReader):
    """Readings of the running step on one GPU, and accumulators of the steps before it."""

    def read_any(self, x: Tensor, slot: int, kind: int, image: bool) -> Any:
        """Read a tensor however it lies."""
        if x.is_contiguous():
            return self.read(x, slot, kind == ROWS, image)
        if kind == IMAGE and not image and is_channels_last(x):
            return self.read(x.detach().movedim(1, -1), slot, True, False)
        return self.read(x.detach().contiguous(), slot, kind == ROWS, image)

    def _new(self, key: Structure, readings: Sequence[Any], gradient: Sequence[bool]) -> Totals:
        return _DeviceTotals(key, readings, gradient, self.device)


class _DeviceTotals(Totals):
    """Accumulators on a GPU."""

    def __init__(
        self,
        key: Structure,
        readings: Sequence[Any],
        gradient: Sequence[bool],
        device: torch.device,
    ) -> None:
        super().__init__(key, readings, gradient)
        self.record = DeviceRecord(self.ends[-1] + self.grouped, device)
        self._step = DeviceRecord(self.grouped, device)

    def _add(
        self, pages: list[Page], readings: list[Any], inverse: Tensor | None, step: int
    ) -> None:
        start = first = 0
        for place, page in enumerate(pages):
            facts = list(map(_FACT, page.readings))
            flags = self.gradient[first : first + len(facts)]
            options: Any = {"gradient": flags, "inverse": inverse, "turn": step, "key": place}
            self.record.merge(page, facts, start, drift=False, **options)
            first += len(facts)
            start = self.ends[first - 1]
        if self.groups:
            self._add_groups(pages, inverse)

    def _add_groups(self, pages: Sequence[Page], inverse: Tensor | None) -> None:
        """Merge the readings of each group, one of each at a time, and add them as one."""
        self._step.data.zero_()
        flags = [self.gradient[group.numbers[0]] for group in self.groups]
        where = [(page, r) for page in pages for r in page.readings]
        for turn in range(max(len(group.numbers) for group in self.groups)):
            chosen = [
                where[group.numbers[turn]] if turn < len(group.numbers) else None
                for group in self.groups
            ]
            for place, page in enumerate(pages):
                facts = [
                    (at[1].offset, at[1].width, at[1].parts, 0)
                    if at is not None and at[0] is page
                    else (0, group.width, 0, 0)  # nothing of it here
                    for at, group in zip(chosen, self.groups, strict=True)
                ]
                if any(parts for _, _, parts, _ in facts):
                    key = (turn, place)
                    self._step.merge(page, facts, gradient=flags, inverse=inverse, key=key)
        every = [(0, self.grouped, 1, 0)]
        self.record.merge(self._step, every, self.ends[-1], drift=False, key="groups")

    def _first_losses(self, data: Tensor) -> Mapping[int, int]:
        parts = data[3, : self.ends[-1]].split(self.widths)
        known = {number: part[part >= 0] for number, part in enumerate(parts)}
        return {number: int(part.min()) for number, part in known.items() if len(part)}
