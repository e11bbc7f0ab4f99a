"""The books of lean recording: readings are written during a step and merged at its end.

Each tensor is read once; a tensor that two sites share is read for both. At the end of a step all
readings are merged at once into float64 accumulators; until then they can be thrown away, which is
how a step whose scaled gradients overflowed is set apart. How tensors are read is the business of
the readers (:mod:`shiftscope.capture.readers`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.blocks import Block
from shiftscope.capture.device_reader import Parts
from shiftscope.capture.events import count
from shiftscope.capture.kinds import by_kind, mixed
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.mean_images import MeanImages
from shiftscope.capture.readers import Found
from shiftscope.capture.readings import Reading
from shiftscope.capture.recorder import Settings
from shiftscope.capture.site_state import SiteState
from shiftscope.capture.totals import Totals
from shiftscope.capture.waiting import Waiting
from shiftscope.tally import Moments
from shiftscope.tally.steps import all_within

__all__ = ["Ledger", "together"]

_FIRST = itemgetter(0)
_MANY = 2**23
"""Columns of unmerged readings that are merged before the step has ended."""
_SAMPLED = 2**26
"""Bytes of sampled rows that are put together before the step has ended."""


class Ledger(Waiting):
    """Readings of the step that runs, and what they become when it ends.

    Args:
        settings: What to record.
        scaler: The GradScaler in use, so that gradients can be divided by its scale.
    """

    def __init__(self, settings: Settings, scaler: Any = None) -> None:
        super().__init__(settings)
        self.scaler = scaler
        self.detail, self.step = False, 0
        self.plans: dict[str, list[Any]] = {}
        self.slots: list[tuple[SiteState, str]] = []
        self._numbers: dict[tuple[str, str], int] = {}
        self._gradient: list[bool] = []
        self._alone: set[int] = set()
        self._every: dict[int, int] = {}
        self._seen: set[int] = set()
        self._totals: dict[int, Moments] = {}
        self._pieces: dict[int, Moments] = {}
        self._lost: dict[int, Tensor] = {}
        self._fed_by: dict[SiteState, SiteState] = {}
        self._mean_images = MeanImages()
        self.itself: Callable[[], Any] = weakref.ref(self)

    # -- during a step --------------------------------------------------------------------------

    def slot(self, state: SiteState, name: str) -> int:
        """The number under which a stream of a site is written."""
        key = (state.info.site, name)
        with self._lock:
            number = self._numbers.get(key)
            if number is None:
                number = self._numbers[key] = len(self.slots)
                self.slots.append((state, name))
                self._gradient.append(name.startswith("grad"))
                self.readers.imaged.append(False)
                if name == "grad_z_alone":
                    self._alone.add(number)
            return number

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
        reading: Found | None,
        rows: int | None = None,
    ) -> None:
        """Keep some rows of a tensor for quantiles."""
        self._sampler.put(slot, self._sampler.draw(slot, tensor, kind, dim, reading, rows))

    def image(self, state: SiteState, op: LinearOp, x: Tensor, reading: Found | None) -> None:
        """Keep the mean input image of a convolution."""
        batch = x.detach() if op.batched else x.detach().unsqueeze(0)
        if not isinstance(reading, Moments | None) and reading.image is not None:
            mean = reading.image
            if isinstance(reading, Reading) and reading.gain != 1.0:
                mean = mean.double() / reading.gain
        else:
            mean = batch.mean(dim=0, dtype=torch.float64)
            self.readers.want_image(reading)
        finite = type(reading) is Parts and getattr(reading, "image", None) is not None
        self._images.append((state, op, mean.reshape(batch.shape[1:]), batch.shape[0], finite))

    # -- the end of a step ----------------------------------------------------------------------

    def flush(self, *, ended: bool = True) -> None:
        """Merge what was read since the last flush.

        Args:
            ended: Whether the step has ended; gradients that still come for it are left out then.
        """
        with torch._C.DisableTorchFunction():  # nobody's mode is to see this, ours least of all
            self._flush(ended)

    def _flush(self, ended: bool) -> None:
        pending, events, images = self._withdraw()
        pending += self._every_gradient(pending)
        inverse = self._inverse_scale()
        kinds = by_kind(pending)
        in_pieces = not ended or bool(self._pieces) or mixed(kinds)
        if in_pieces:
            self._fold()  # so that what is closed below is of this step alone
        self._merge(kinds, inverse)
        add = self._add_piece if in_pieces or not ended else self._add_total
        for slot, moments in self._exact(kinds[Moments], inverse).items():
            add(slot, moments)
        if in_pieces:
            self._add_all(self.readers.close(), self._add_piece)
        if ended:
            for slot, moments in self._pieces.items():
                self._add_total(slot, moments)
            self._pieces.clear()
        count(events)
        self._mean_images.add(images)
        self._sampler.keep()
        self.epoch += ended

    def _every_gradient(self, pending: list[tuple[int, Found]]) -> list[tuple[int, Found]]:
        """What is to be written once more where some calls of a site passed no gradient on.

        Those count for grad_z and not for the backward gain. Within a step all are merged exactly,
        so that the sum of both kinds needs a slot of its own, from the first time on that a site
        which knew the one kind meets the other.
        """
        if not all_within(pending, self._seen):
            new = set(map(_FIRST, pending)) - self._seen
            self._seen |= new
            for alone in (self._alone & self._seen) - self._every.keys():
                state = self.slots[alone][0]
                paired = self._numbers.get((state.info.site, "grad_z"), -1)
                if paired in self._seen:
                    both = self.slot(state, "grad_z_every")
                    self._begin_every(both, {alone, paired} - new)
                    self._every[alone] = self._every[paired] = both
        every = self._every
        return [(every[slot], found) for slot, found in pending if slot in every] if every else []

    def _begin_every(self, both: int, known: Iterable[int]) -> None:
        """Begin the sum of both kinds of gradients with all there was of the one kind."""
        tables: tuple[dict[Any, Any], ...] = (self._totals, self._pieces, self._lost)
        for before in known:
            self._fold()
            for table in tables:
                if before in table:
                    table[both] = table[before]

    def _merge(self, kinds: dict[Any, list[Any]], inverse: Tensor | None) -> None:
        """Give each reader what it read."""
        found = self.readers.merge(kinds, self._gradient, inverse, self.step)
        if found:
            self._add_all(found, self._add_total)

    def _exact(
        self, found: list[tuple[int, Moments]], inverse: Tensor | None
    ) -> dict[int, Moments]:
        """Exact moments of the step, one for each stream."""
        known: dict[int, Moments] = {}
        for slot, moments in found:
            mine = self._unscaled(slot, moments, inverse)
            known[slot] = _merged(known.get(slot), mine)
        return known

    def _add_piece(self, slot: int, moments: Moments) -> None:
        """Keep a piece of the running step: of a long one that was emptied before its end."""
        self._pieces[slot] = _merged(self._pieces.get(slot), moments)

    def _fold(self) -> None:
        """Move what was merged so far into the totals of the window; waits for the device."""
        self._add_all(self.readers.close(), self._add_total)

    def discard(self) -> None:
        """Throw away what was read since the last flush."""
        self._withdraw()
        self._pieces.clear()
        self.readers.clear()
        self._sampler.drop()
        self.epoch += 1

    @property
    def crowded(self) -> bool:
        """Whether so many readings wait that they should be merged at once."""
        if self._sampler.waiting > _SAMPLED:
            return True
        if len(self._pending) <= 4096:
            return False
        waiting = sum(len(r.mean) for _, r in self._pending if isinstance(r, Reading))
        return waiting + self.readers.used > _MANY

    def _add_all(
        self, closed: Sequence[Totals | Block], add: Callable[[int, Moments], None]
    ) -> None:
        """Add accumulators, each of steps of one structure: to the window, or to the step."""
        raise NotImplementedError

    def _add_total(self, slot: int, moments: Moments) -> None:
        """Add moments of one stream to the totals of the window."""
        raise NotImplementedError

    def _inverse_scale(self) -> Tensor | None:
        scale = getattr(self.scaler, "_scale", None)
        return None if scale is None else scale.detach().double().reciprocal()

    def _unscaled(self, slot: int, moments: Moments, inverse: Tensor | None) -> Moments:
        if inverse is None or not self._gradient[slot]:
            return moments
        factor = inverse.to(moments.mean.device)
        return replace(
            moments,
            mean=moments.mean * factor,
            m2=moments.m2 * factor.square(),
            scale=moments.scale * factor,
        )


def _merged(one: Moments | None, other: Moments) -> Moments:
    """Of one step; the first of several widths is kept."""
    if one is None or len(one.mean) != len(other.mean):
        return other if one is None else one
    return Moments.merge(*together(one, other))


def together(one: Moments, other: Moments) -> tuple[Moments, Moments]:
    """Moments that are to be put together, on the device of one of them if they are on two.

    Not on the CPU where one is on a GPU: to bring it here is to wait for the GPU.
    """
    device = other.mean.device if one.mean.is_cpu else one.mean.device
    return one.to(device), other.to(device)
