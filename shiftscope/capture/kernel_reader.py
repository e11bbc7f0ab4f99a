"""Reading by torch's kernels, and what becomes of readings that must not be trusted.

Where a kernel's reading is doubtful (squares that underflow, a spread near the rounding of the
mean, values that are not finite) its place is read another way from the next step on, and its
neurons of this step are flagged. On a device the verdict of a step arrives a step or two later, so
that nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shiftscope.capture.blocks import BIG, COARSE, HOPELESS, LOST, SMALL, Block, Key
from shiftscope.capture.readings import IMAGE, OTHER, ROWS, Reading, read, read_centred
from shiftscope.tally import Moments

__all__ = ["KernelReader"]

_GAINS = (1.0, 2.0**64, 2.0**120)


class _Way:
    """How the tensors of one slot are read.

    Attributes:
        level: Index of the power of two they are multiplied by.
        highest: Largest level that was not too much.
        exact: In float64, one by one.
        centred: After the first row was taken off.
        hopeless: The spread is rounding of the numbers themselves, however they are read.
    """

    __slots__ = ("centred", "exact", "highest", "hopeless", "level")

    def __init__(self) -> None:
        self.level, self.highest = 0, len(_GAINS) - 1
        self.exact = self.centred = self.hopeless = False


class KernelReader:
    """Readings of the running step by torch's kernels, on any device."""

    def __init__(self) -> None:
        self._ways: dict[int, _Way] = {}
        self._block: Block | None = None
        self._verdict: tuple[Block, Tensor, Any] | None = None

    def read(
        self, slot: int, values: Tensor, kind: int, dim: int, image: bool
    ) -> Reading | Moments:
        """Read a detached tensor that has rows.

        Args:
            slot: Where the reading will be written.
            values: The tensor.
            kind: How its neurons lie.
            dim: Their dimension, where that is neither the last one nor the second.
            image: Whether the mean over samples at each position is wanted as well.
        """
        way = self._ways.get(slot)
        if kind == OTHER or (way is not None and way.exact):
            return Moments.of(values, -1 if kind == ROWS else (1 if kind == IMAGE else dim))
        if way is None or not (way.centred or way.level):
            return read(values, kind, image=image)
        if way.centred:
            return read_centred(values, kind)
        gain = _GAINS[way.level]
        eps = float(torch.finfo(values.dtype).eps)
        return read(values.float() * gain, kind)._replace(gain=gain, eps=eps)

    def merge(
        self,
        writes: Sequence[tuple[int, Reading]],
        gradient: Sequence[bool],
        inverse: Tensor | None,
        step: int,
    ) -> Iterator[Block]:
        """Merge a step.

        Args:
            writes: Slots and readings, in order.
            gradient: For each slot whether it is a gradient, to be divided by the loss scale.
            inverse: One over the loss scale, or None.
            step: Its number.

        Yields:
            Accumulators of earlier steps of another structure, which are closed now.
        """
        devices = {reading.mean.device for _, reading in writes}
        for device in devices:
            chosen = [w for w in writes if w[1].mean.device == device]
            readings, key = _structure(chosen if len(devices) > 1 else writes)
            block = self._block
            if block is None or block.key != key:
                if block is not None:
                    yield block
                flags = [False] * len(readings)
                for slot, number in zip(key[0], key[1], strict=True):
                    flags[number] |= gradient[slot]
                block = self._block = Block(key, readings, flags)
            self._heed(block, block.add(readings, inverse, step))

    def opened(self) -> list[Block]:
        """The accumulators of the steps so far, which go on."""
        return [] if self._block is None else [self._block]

    def close(self) -> list[Block]:
        """The accumulators of the steps so far; new ones begin."""
        closed, self._block = self.opened(), None
        return closed

    def _heed(self, block: Block, codes: Tensor | None) -> None:
        """Change how doubtful places are read from now on; without waiting for the device."""
        if codes is None:
            return
        if codes.device.type == "cpu":
            self._mend(block, codes)
            return
        before = self._verdict
        if before is not None:
            if not before[2].query():
                return
            self._mend(before[0], before[1])
        answer = torch.empty(codes.shape, dtype=torch.uint8, pin_memory=True)
        answer.copy_(codes, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._verdict = (block, answer, done)

    def _mend(self, block: Block, codes: Tensor) -> None:
        """Multiply small gradients up; read exactly what is small beside its mean."""
        values = codes.numpy()
        starts = np.asarray(block.starts)
        any_of = np.bitwise_or.reduceat(values, starts)
        all_of = np.bitwise_and.reduceat(values, starts)
        if not (any_of & np.uint8(SMALL | COARSE | LOST | HOPELESS)).any():
            return
        for slot, number in zip(block.key[0], block.key[1], strict=True):
            found = int(any_of[number])
            if found:
                _change(self._ways.setdefault(slot, _Way()), found, int(all_of[number]))


def _change(way: _Way, found: int, always: int) -> None:
    if found & LOST and way.level:
        way.level = way.highest = way.level - 1  # multiplied too far: one step back, for good
    elif found & LOST:
        way.exact = True
    elif found & COARSE:
        way.centred = not way.hopeless
    elif found & SMALL and not found & BIG:
        way.level = min(way.level + 1, way.highest)
    elif way.centred and always & HOPELESS:
        way.centred, way.hopeless = False, True


def _structure(writes: Sequence[tuple[int, Reading]]) -> tuple[list[Reading], Key]:
    """The distinct readings, and which slots are written by which of them."""
    numbers: dict[int, int] = {}
    readings: list[Reading] = []
    places = []
    for _, reading in writes:
        number = numbers.get(id(reading))
        if number is None:
            number = numbers[id(reading)] = len(readings)
            readings.append(reading)
        places.append(number)
    shapes = tuple([(r.mean.shape[0], r.eps) for r in readings])
    return readings, (tuple([slot for slot, _ in writes]), tuple(places), shapes)
