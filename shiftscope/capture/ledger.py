"""The books of lean recording: readings are written during a step and merged at its end.

Each tensor is read once (:mod:`shiftscope.capture.readings`); a tensor that two sites share is read
for both. At the end of a step all readings are merged at once into float64 accumulators
(:mod:`shiftscope.capture.blocks`); until then they can be thrown away, which is how a step whose
scaled gradients overflowed is set apart. Where a reading must not be trusted its place is read
exactly from the next step on, and its neurons of this step are flagged.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shiftscope.capture.blocks import BIG, COARSE, HOPELESS, LOST, SMALL, Block, Key
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.mean_inputs import MeanImages
from shiftscope.capture.readings import (
    IMAGE,
    OTHER,
    ROWS,
    Reading,
    read,
    read_centred,
)
from shiftscope.capture.recorder import Recorder, Settings, SiteState
from shiftscope.capture.sampling import Sampler
from shiftscope.tally import Moments

__all__ = ["Ledger"]

_GAINS = (1.0, 2.0**64, 2.0**120)
_RECENT = 4
_MANY = 2**23
"""Columns of unmerged readings that are merged before the step has ended."""

Event = tuple[SiteState, str, int]
"""What happened at a site, and samples of the forward pass it was the first call in."""

_COUNTERS = {
    "call": ("calls",),
    "hooked": ("hooked",),
    "arrived": ("arrived",),
    "due": ("arrived", "shares_due"),
    "shared": ("arrived", "shares_due", "shares"),
    "repeated": ("repeated",),
    "shares": ("shares",),
    "shares_due": ("shares_due",),
    "calls": ("calls",),
}
"""What happened -> the counters of a site that it raises."""


class _Local(threading.local):
    """What one thread read last."""

    def __init__(self) -> None:
        self.recent: list[tuple[Any, int, Any, int, Reading | Moments, int]] = []
        self.forward = -1
        self.counted: set[SiteState] = set()


class Ledger(Recorder):
    """Readings of the step that runs, and what they become when it ends.

    Args:
        settings: What to record.
        scaler: The GradScaler in use, so that gradients can be divided by its scale.
    """

    def __init__(self, settings: Settings, scaler: Any = None) -> None:
        super().__init__(settings)
        self.scaler = scaler
        self.detail = False
        self.plans: dict[str, list[Any]] = {}
        self.slots: list[tuple[SiteState, str]] = []
        self._numbers: dict[tuple[str, str], int] = {}
        self._levels: list[int] = []
        self._highest: list[int] = []
        self._exact: list[bool] = []
        self._centred: list[bool] = []
        self._imaged: list[bool] = []
        self._plain: list[bool] = []
        self._hopeless: list[bool] = []
        self._totals: dict[int, Moments] = {}
        self._lost: dict[int, Tensor] = {}
        self._fed_by: dict[SiteState, SiteState] = {}
        self._pending: list[tuple[int, Reading | Moments]] = []
        self._events: list[Event] = []
        self._images: list[tuple[SiteState, LinearOp, Tensor, int]] = []
        self._sampler = Sampler(settings)
        self._mean_images = MeanImages()
        self._local = _Local()
        self._block: Block | None = None
        self.itself: Callable[[], Any] = weakref.ref(self)
        self._verdict: tuple[Block, Tensor, Any] | None = None

    # -- during a step --------------------------------------------------------------------------

    def slot(self, state: SiteState, name: str) -> int:
        """The number under which a stream of a site is written."""
        key = (state.info.site, name)
        with self._lock:
            number = self._numbers.get(key)
            if number is None:
                number = self._numbers[key] = len(self.slots)
                self.slots.append((state, name))
                self._levels.append(0)
                self._highest.append(len(_GAINS) - 1)
                self._exact.append(False)
                self._centred.append(False)
                self._imaged.append(False)
                self._plain.append(True)
                self._hopeless.append(False)
            return number

    def tell(self, state: SiteState, name: str) -> None:
        """Count something at the end of the step; safe from any thread."""
        self._events.append((state, name, 0))

    def look(self, slot: int, tensor: Tensor, kind: int, dim: int) -> Reading | Moments | None:
        """Read a tensor, unless this thread just did; None for a tensor without rows.

        Args:
            slot: Where the reading will be written.
            tensor: What to read.
            kind: How its neurons lie.
            dim: Their dimension, where that is neither the last one nor the second.
        """
        if tensor.is_inference():
            return self._fresh(slot, tensor, kind, dim)
        base, version = tensor._base, tensor._version
        place: Any
        if base is None:
            anchor, place = tensor, kind
        else:
            # Views of one base are distinct objects that may hold the same rows.
            anchor = base
            place = (tensor.storage_offset(), tensor.numel(), tensor.stride()[-1], kind)
        width = tensor.shape[-1 if kind == ROWS else (1 if kind == IMAGE else dim)]
        recent = self._local.recent
        reading: Reading | Moments
        for reference, known, where, wide, reading, _ in reversed(recent):
            if known == version and wide == width and reference() is anchor and where == place:
                return reading
        made = self._fresh(slot, tensor, kind, dim)
        if made is not None:
            recent.append((weakref.ref(anchor), version, place, width, made, slot))
            if len(recent) > _RECENT:
                del recent[0]
        return made

    def write(self, slot: int, reading: Reading | Moments | None) -> None:
        """Keep a reading for the end of the step."""
        if reading is not None:
            self._pending.append((slot, reading))

    def take(self, slot: int, tensor: Tensor, kind: int, dim: int = -1) -> None:
        """Read and keep."""
        reading = self.look(slot, tensor, kind, dim)
        if reading is not None:
            self._pending.append((slot, reading))

    def sample(
        self,
        slot: int,
        tensor: Tensor,
        kind: int,
        dim: int,
        reading: Reading | Moments | None,
        rows: int | None = None,
    ) -> None:
        """Keep some rows of a tensor for quantiles."""
        self._sampler.put(slot, self._sampler.draw(slot, tensor, kind, dim, reading, rows))

    def image(
        self, state: SiteState, op: LinearOp, x: Tensor, reading: Reading | Moments | None
    ) -> None:
        """Keep the mean input image of a convolution."""
        batch = x.detach() if op.batched else x.detach().unsqueeze(0)
        if isinstance(reading, Reading) and reading.image is not None:
            mean = reading.image
            if reading.gain != 1.0:
                mean = mean.double() / reading.gain
        else:
            mean = batch.mean(dim=0, dtype=torch.float64)
            for *_, known, slot in self._local.recent:
                if known is reading:  # ask for the image together with the rest next time
                    self._imaged[slot] = True
        self._images.append((state, op, mean.reshape(batch.shape[1:]), batch.shape[0]))

    def _fresh(self, slot: int, tensor: Tensor, kind: int, dim: int) -> Reading | Moments | None:
        if tensor.numel() == 0:
            return None
        values = tensor.detach()
        if kind == OTHER or self._exact[slot]:
            place = -1 if kind == ROWS else (1 if kind == IMAGE else dim)
            return Moments.of(values, place)
        if self._plain[slot]:
            return read(values, kind, image=self._imaged[slot])
        if self._centred[slot]:
            return read_centred(values, kind)
        gain = _GAINS[self._levels[slot]]
        return read(values.float() * gain, kind)._replace(gain=gain, eps=_eps_of(values))

    # -- the end of a step ----------------------------------------------------------------------

    def flush(self, *, ended: bool = True) -> None:
        """Merge what was read since the last flush.

        Args:
            ended: Whether the step has ended; gradients that still come for it are left out then.
        """
        pending, events, images = self._withdraw()
        inverse = self._inverse_scale()
        plain = []
        for write in pending:
            if type(write[1]) is Reading:
                plain.append(write)
            else:
                self._add_total(write[0], self._unscaled(write[0], write[1], inverse))
        devices = {r.mean.device for _, r in plain} if torch.cuda.is_initialized() else {None}
        for device in devices if plain else ():
            chosen = [w for w in plain if w[1].mean.device == device] if len(devices) > 1 else plain
            self._merge(chosen, inverse)
        for (state, what, number), times in Counter(events).items():
            for name in _COUNTERS[what]:
                setattr(state, name, getattr(state, name) + times)
            state.samples += number * times
        for state, op, mean, samples in images:
            self._mean_images.add(state, op, mean, samples)
        self._sampler.keep()
        self.epoch += ended

    def discard(self) -> None:
        """Throw away what was read since the last flush."""
        self._withdraw()
        self._sampler.drop()
        self.epoch += 1

    @property
    def crowded(self) -> bool:
        """Whether so many readings wait that they should be merged at once."""
        return (
            len(self._pending) > 4096
            and sum(len(r.mean) for _, r in self._pending if isinstance(r, Reading)) > _MANY
        )

    def _withdraw(self) -> tuple[list[Any], list[Event], list[Any]]:
        taken: list[Any] = []
        lists: tuple[list[Any], ...] = (self._pending, self._events, self._images)
        for items in lists:
            # Other threads may append meanwhile: the same lists are emptied, not replaced.
            number = len(items)
            taken.append(items[:number])
            del items[:number]
        self._local.recent.clear()
        return taken[0], taken[1], taken[2]

    def _merge(self, writes: Sequence[tuple[int, Reading]], inverse: Tensor | None) -> None:
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
        key: Key = (tuple([slot for slot, _ in writes]), tuple(places), shapes)
        if self._block is None or self._block.key != key:
            self._fold()
            gradient = [False] * len(readings)
            for slot, number in zip(key[0], key[1], strict=True):
                gradient[number] |= self.slots[slot][1].startswith("grad")
            self._block = Block(key, readings, gradient)
        self._heed(self._block, self._block.add(readings, inverse))

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
            found, level = int(any_of[number]), self._levels[slot]
            if not found:
                continue
            if found & LOST and level:
                # Multiplied too far: one step back, for good.
                self._levels[slot], self._highest[slot] = level - 1, level - 1
            elif found & LOST:
                self._exact[slot] = True
            elif found & COARSE:
                self._centred[slot] = not self._hopeless[slot]
            elif found & SMALL and not found & BIG:
                self._levels[slot] = min(level + 1, self._highest[slot])
            elif self._centred[slot] and int(all_of[number]) & HOPELESS:
                # Every spread is rounding of the numbers themselves, however it is read.
                self._centred[slot], self._hopeless[slot] = False, True
            self._plain[slot] = not (self._centred[slot] or self._levels[slot])

    def _fold(self) -> None:
        """Move what was merged so far into the totals of the window."""
        raise NotImplementedError

    def _add_total(self, slot: int, moments: Moments) -> None:
        """Add moments of one stream to the totals of the window."""
        raise NotImplementedError

    def _inverse_scale(self) -> Tensor | None:
        scale = getattr(self.scaler, "_scale", None)
        return None if scale is None else scale.detach().double().reciprocal()

    def _unscaled(self, slot: int, moments: Moments, inverse: Tensor | None) -> Moments:
        if inverse is None or not self.slots[slot][1].startswith("grad"):
            return moments
        factor = inverse.to(moments.mean.device)
        return replace(
            moments,
            mean=moments.mean * factor,
            m2=moments.m2 * factor.square(),
            scale=moments.scale * factor,
        )


def _eps_of(values: Tensor) -> float:
    return float(torch.finfo(values.dtype).eps)
