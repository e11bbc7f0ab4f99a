"""The books of a window: what the readings of its steps add up to, and the records it ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.blocks import Block
from shiftscope.capture.ledger import Ledger, together
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.mean_inputs import rows_input, rows_inputs
from shiftscope.capture.recorder import Settings
from shiftscope.capture.site_state import SiteState, note_changes
from shiftscope.capture.streams import shown_name
from shiftscope.capture.totals import Total, Totals
from shiftscope.capture.weights import OpenFacts, input_power, is_readable, rounding_scale
from shiftscope.record import SiteRecord, Stream
from shiftscope.tally import Counts, Extrema, Moments, RowSample
from shiftscope.tally.transfer import groups_to_host, tallies_to_host, to_devices, to_host
from shiftscope.theory.saturation import saturation_bounds

__all__ = ["WindowLedger"]


class WindowLedger(Ledger):
    """Totals of the steps of a window, the weights of its first step, and its records.

    Args:
        settings: What to record.
        scaler: The GradScaler in use, so that gradients can be divided by its scale.

    Attributes:
        unsettled: Whether a linear op ran whose weights are still to be read for this window.
    """

    def __init__(self, settings: Settings, scaler: Any = None) -> None:
        super().__init__(settings, scaler)
        self.unsettled = False

    def _add_all(
        self, closed: Sequence[Totals | Block], add: Callable[[int, Moments], None]
    ) -> None:
        columns = groups_to_host([totals.columns for totals in closed])
        for totals, own in zip(closed, columns, strict=True):
            self._note_floors(totals.key[0], totals.key[1])
            for total in totals.totals(own):
                add(total.slot, total.moments)
                if bool((total.lost > 0).any()):
                    self._note_loss(total)

    def _note_loss(self, total: Total) -> None:
        state, name = self.slots[total.slot]
        before = self._lost.get(total.slot)
        if before is None or len(before) == len(total.lost):
            self._lost[total.slot] = total.lost if before is None else before + total.lost
        if total.since >= 0:
            name = shown_name(name)
            state.lost_since[name] = min(total.since, state.lost_since.get(name, total.since))

    def _note_floors(self, slots: Iterable[int], numbers: Iterable[int]) -> None:
        """An activation that reads what a linear op wrote shares the rounding of its sums."""
        wrote: dict[int, SiteState] = {}
        for slot, number in zip(slots, numbers, strict=True):
            state, name = self.slots[slot]
            if name == "z" and state.info.kind == "linear":
                wrote.setdefault(number, state)
            elif name == "z" and number in wrote:
                self._fed_by[state] = wrote[number]

    def _add_total(self, slot: int, moments: Moments) -> None:
        if not _join(self._totals, slot, moments):
            state, name = self.slots[slot]
            state.notes[f"{name} had several widths; only the first is kept"] = None

    def settle(self) -> None:
        """Read the weights of the sites whose first step of a window has just ended.

        Shifts and angles are those of this step: its weights and its mean inputs, while means and
        variances go on to be averaged over all steps of the window. Nothing waits for the device:
        the facts come to the CPU with everything else when the window ends.
        """
        with torch._C.DisableTorchFunction():
            self._mean_images.hand_out()
            known = self._so_far()
            self.unsettled = False
            for state in list(self.states.values()):  # other threads may add sites meanwhile
                if state.settled or not state.calls:
                    continue
                state.settled = True
                a, z = (known.get(self._numbers.get((state.info.site, n), -1)) for n in "az")
                if state.facts is None and a is not None and z is not None:
                    self._read_weight(state, a, z)

    def _read_weight(self, state: SiteState, a: Moments, z: Moments) -> None:
        op = state.weight
        if op is None or op.x2 is not None:
            return
        note_changes(state)
        mean_input = rows_input(op, a) if op.patches is None else state.mean_input
        facts = OpenFacts.of(op, mean_input, z.count.max())
        if facts is not None:
            state.facts = replace(facts, z_mean=z.mean)

    def _so_far(self) -> dict[int, Moments]:
        """Moments of the steps so far where they lie; accumulators stay open."""
        known = dict(self._totals)
        for totals in self.readers.opened():
            for slot, moments in totals.moments(totals.columns):
                _join(known, slot, moments)
        return known

    def records(self, *, backward: bool = True) -> dict[str, SiteRecord]:
        """The frozen records of all flushed steps since the last :meth:`restart`."""
        with torch._C.DisableTorchFunction():
            return self._records(backward)

    def _records(self, backward: bool) -> dict[str, SiteRecord]:
        self._totals = dict(
            zip(self._totals, tallies_to_host(list(self._totals.values())), strict=True)
        )
        self._fold()
        for state in list(self.states.values()):
            state.streams.clear()
        samples, known = self._sampler.to_host(), dict[int, Extrema]()
        for slot, moments in self._totals.items():
            self._to_stream(slot, moments, samples.get(slot), known)
        self._mean_images.hand_out()
        floors = self._finish()
        for state in list(self.states.values()):
            _raise_floor(state, floors.get(self._fed_by.get(state, state)))
        return super().records(backward=backward)

    def restart(self) -> None:
        """Begin a new window: forget the numbers, keep what is known of the ops."""
        self.readers.close()
        self._totals.clear()
        self._lost.clear()
        self._fed_by.clear()
        self._sampler.clear()
        self._mean_images.clear()
        for state in list(self.states.values()):
            state.restart()
        self.empty.clear()

    def _to_stream(
        self, slot: int, moments: Moments, sample: RowSample | None, known: dict[int, Extrema]
    ) -> None:
        """Complete a stream; ``known`` are the extrema of samples, which several streams share."""
        state, name = self.slots[slot]
        lost = self._lost.get(slot)
        counts = extrema = None
        if sample is not None:
            rows = moments.count if lost is None else moments.count + lost
            if sample.kept == int(rows.max()):  # a part of the rows knows no extrema
                extrema = known.get(id(sample.rows))
                if extrema is None:
                    extrema = known[id(sample.rows)] = Extrema.of(sample.rows)
            if name == "z":
                counts = Counts.of(sample.rows, saturated_outside=_bounds(state))
        if lost is not None:
            counts = _with_lost(counts, lost.long())
            state.notes[f"non-finite values of {shown_name(name)} were left out"] = None
        state.streams[name] = Stream(moments, extrema, counts, sample)
        state.seen[name] = int(moments.count.max())

    def _finish(self) -> dict[SiteState, Tensor]:
        """Complete the mean inputs of linear sites; the sizes of the terms their sums were of."""
        states = list(self.states.values())
        found = [(state, state.weight, state.streams.get("a")) for state in states]
        sites = [
            (state, op, a.moments)
            for state, op, a in found
            if op is not None and a is not None and op.x2 is None and is_readable(op.weight)
        ]
        _give_inputs(sites)
        powers = [input_power(moments) for _, _, moments in sites]
        powers = to_devices(powers, [op.weight.device for _, op, _ in sites])
        floors = [rounding_scale(op, p) for (_, op, _), p in zip(sites, powers, strict=True)]
        return dict(zip((state for state, _, _ in sites), to_host(floors), strict=True))


def _give_inputs(sites: Sequence[tuple[SiteState, LinearOp, Moments]]) -> None:
    """Give the sites whose inputs are rows their mean inputs, unless the facts know them."""
    bare = [
        (state, op, moments)
        for state, op, moments in sites
        if op.patches is None and state.mean_input is None and state.facts is None
    ]
    made = rows_inputs([(op, moments) for _, op, moments in bare])
    for (state, _, _), mean_input in zip(bare, made, strict=True):
        state.mean_input = mean_input


def _join(known: dict[int, Moments], slot: int, moments: Moments) -> bool:
    """Average moments into those of other steps; False where they are of another width."""
    before = known.get(slot)
    if before is not None and len(before.mean) != len(moments.mean):
        return False
    known[slot] = moments if before is None else Moments.join(*together(before, moments))
    return True


def _bounds(state: SiteState) -> tuple[float, float] | None:
    """Where the function of an activation site is taken to be saturated."""
    if state.info.kind != "activation":
        return None
    return saturation_bounds(state.info.op, dict(state.info.params))


def _with_lost(counts: Counts | None, lost: Tensor) -> Counts:
    """Counts of a row sample, and all values that were not finite, in the sample or not."""
    none = torch.zeros_like(lost)
    if counts is None:
        return Counts(lost, none, none, lost)
    more = (lost - counts.nonfinite).clamp(min=0)
    return counts.merge(Counts(more, none, none, more))


def _raise_floor(state: SiteState, floor: Tensor | None) -> None:
    z = state.streams.get("z")
    if z is None or floor is None or len(floor) != len(z.moments.scale):
        return
    scale = z.moments.scale
    wider = torch.where(scale > 0, torch.maximum(scale, floor), 0.0)
    state.streams["z"] = replace(z, moments=replace(z.moments, scale=wider))
