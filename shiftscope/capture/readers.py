"""All ways to read a tensor in a recorded step, and which one is taken.

Tensors on the CPU are read by compiled code (:mod:`shiftscope.capture.compiled_reader`), those on a
GPU by Triton kernels (:mod:`shiftscope.capture.device_reader`); all others, and all where these are
not to be had, by torch's kernels (:mod:`shiftscope.capture.kernel_reader`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.blocks import Block
from shiftscope.capture.compiled_reader import Columns, CompiledReader
from shiftscope.capture.device_reader import DeviceReaders, Parts
from shiftscope.capture.kernel_reader import KernelReader
from shiftscope.capture.readings import OTHER, Reading
from shiftscope.capture.recent import Identity, Recent
from shiftscope.capture.totals import Totals
from shiftscope.tally.native import built

__all__ = ["Found", "Readers"]

Found = Any
"""What reading a tensor gives: Columns of the compiled reader, Parts of the one on a GPU, a Reading
by torch's kernels, or exact Moments."""


class Readers:
    """Reads the tensors of a step, and merges the readings of each kind when it ends.

    Attributes:
        compiled: The reader on the CPU; None where it is not built.
        devices: The readers of GPUs.
        looks: ``look(tensor, slot, kind, image)``: each reads what it knows from a step before, and
            gives None for anything else.
        turn: How often what was read has been merged, or given up.
        imaged: For each slot whether the mean over samples at each position is wanted as well.
    """

    def __init__(self) -> None:
        self.compiled = CompiledReader() if built() else None
        self.looks: list[Any] = [] if self.compiled is None else [self.compiled.look]
        self.devices, self._kernels = DeviceReaders(self.looks), KernelReader()
        self.imaged: list[bool] = []
        self.turn = 0
        self._recent = Recent()

    # -- during a step --------------------------------------------------------------------------

    def look(self, slot: int, tensor: Tensor, kind: int, dim: int) -> Found | None:
        """Read a tensor, unless this thread just did; None for a tensor without rows.

        Args:
            slot: Where the reading will be written.
            tensor: What to read.
            kind: How its neurons lie.
            dim: Their dimension, where that is neither the last one nor the second.
        """
        if kind != OTHER:
            try:
                for look in self.looks:
                    known: Found | None = look(tensor, slot, kind, self.imaged[slot])
                    if known is not None:
                        return known
            except torch.OutOfMemoryError:
                pass  # torch's kernels may need less
        return self.otherwise(slot, tensor, kind, dim)

    def otherwise(self, slot: int, tensor: Tensor, kind: int, dim: int = -1) -> Found | None:
        """The same, of a tensor that none of the looks knows."""
        if not tensor.numel():
            return None
        if tensor.is_inference():  # has no version to be known by
            return self._fresh(slot, tensor, kind, dim)
        seen = Identity.of(tensor, kind, dim, self.turn)
        found: Found | None = self._recent.find(seen)
        if found is None:
            found = self._fresh(slot, tensor, kind, dim)
            self._recent.keep(seen, found, slot)
        return found

    def _fresh(self, slot: int, tensor: Tensor, kind: int, dim: int) -> Found:
        image, found = self.imaged[slot], None
        if kind == OTHER:
            pass
        elif self.compiled is not None and tensor.is_cpu:
            found = self.compiled.read_copy(tensor, slot, kind, image)
        else:
            found = self.devices.read(tensor, slot, kind, image)
        return (
            self._kernels.read(slot, tensor.detach(), kind, dim, image) if found is None else found
        )

    def want_image(self, reading: Found) -> None:
        """Ask for the mean image together with the rest, from the next reading of this place on."""
        mine = type(reading) in (Columns, Parts)
        for slot in [reading.slot] if mine else self._recent.slots(reading):
            self.imaged[slot] = True

    @property
    def used(self) -> int:
        """Columns of the tables that wait to be merged."""
        return self.devices.used + (0 if self.compiled is None else self.compiled.used)

    # -- the end of a step ----------------------------------------------------------------------

    def next_turn(self) -> None:
        """A step ended, or was given up: what any thread read last has lost its place."""
        self.turn += 1

    def merge(
        self,
        kinds: dict[Any, list[Any]],
        gradient: Sequence[bool],
        inverse: Tensor | None,
        step: int,
    ) -> list[Totals | Block]:
        """Give each reader what it read.

        Args:
            kinds: Readings with their slots, by kind.
            gradient: For each slot whether it is divided by the loss scale.
            inverse: One over the loss scale, or None.
            step: Number of the step.

        Returns:
            The accumulators that end here, as this step has another structure than theirs.
        """
        about = (gradient, inverse, step)
        closed: list[Iterator[Totals | Block]] = [
            self.devices.merge(kinds[Parts], *about),
            self._kernels.merge(kinds[Reading], *about),
        ]
        if self.compiled is not None:
            closed.append(self.compiled.merge(kinds[Columns], *about))
        return [*chain.from_iterable(closed)]

    def opened(self) -> list[Totals | Block]:
        """The accumulators of all steps so far, which go on."""
        compiled = [] if self.compiled is None else self.compiled.opened()
        return [*compiled, *self.devices.opened(), *self._kernels.opened()]

    def close(self) -> list[Totals | Block]:
        """The accumulators of all steps so far; new ones begin."""
        compiled = [] if self.compiled is None else self.compiled.close()
        return [*compiled, *self.devices.close(), *self._kernels.close()]

    def clear(self) -> None:
        """Forget what the tables hold of the running step."""
        if self.compiled is not None:
            self.compiled.clear()
        self.devices.clear()
