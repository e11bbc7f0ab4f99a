"""Recording at every step, cheaply: means and variances of all four streams, and mean inputs.

How tensors are read and the readings of a step merged is the business of the ledger
(:mod:`shiftscope.capture.ledger`); here ops become readings, and totals the records of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shiftscope.capture.activation_ops import ActivationOp
from shiftscope.capture.blocks import Block
from shiftscope.capture.ledger import Found, Ledger, together
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.mean_inputs import rows_input, rows_inputs
from shiftscope.capture.readings import kind_of
from shiftscope.capture.recorder import Settings
from shiftscope.capture.sampling import PICTURE_ROWS
from shiftscope.capture.site_state import SiteState, keep_weight, note_changes
from shiftscope.capture.streams import shown_name
from shiftscope.capture.totals import Total, Totals
from shiftscope.capture.weights import (
    MeanInput,
    OpenFacts,
    input_power,
    is_readable,
    rounding_scale,
)
from shiftscope.record import SiteInfo, SiteRecord, Stream
from shiftscope.tally import Counts, Extrema, Moments, RowSample
from shiftscope.tally.transfer import groups_to_host, tallies_to_host, to_devices, to_host
from shiftscope.theory.saturation import saturation_bounds

__all__ = ["LeanRecorder"]


class LeanRecorder(Ledger):
    """Records moments at every step, and row samples at the steps that ask for details.

    Args:
        settings: What to record.
        scaler: The GradScaler in use, so that gradients can be divided by its scale.

    Attributes:
        unsettled: Whether a linear op ran whose weights are still to be read for this window.
    """

    def __init__(self, settings: Settings, scaler: Any = None) -> None:
        super().__init__(settings, scaler)
        self.unsettled = False

    # -- the end of a window --------------------------------------------------------------------

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
        for totals in self._opened():
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
        self._closed()
        self._totals.clear()
        self._lost.clear()
        self._fed_by.clear()
        self._sampler.clear()
        self._mean_images.clear()
        for state in list(self.states.values()):
            state.restart()

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

    # -- one op, parsed anew --------------------------------------------------------------------

    def linear(
        self, site: str, module: str, op: LinearOp, out: Tensor, where: tuple[int, int]
    ) -> SiteState:
        """Record a linear op that has just run (see :meth:`Recorder.linear`)."""
        outputs = out if op.arrange_z is None else op.arrange_z(out.detach())
        inputs = op.x if op.arrange_x is None else op.arrange_x(op.x.detach())
        z_dim = op.z_dim if op.arrange_z is None else -1
        x_dim = op.x_dim if op.arrange_x is None else -1
        width = outputs.shape[z_dim]
        state = self._state(SiteInfo(site, "linear", op.op, module, width, op.fan_in(width)))
        self.linear_streams(state, op, inputs, outputs, (x_dim, z_dim))
        self.keep(state, op)
        self.called(state, where)
        return state

    def keep(self, state: SiteState, op: LinearOp) -> None:
        """Remember a weight; it is read when the step has ended, if it is its first."""
        keep_weight(state, op)
        if not state.settled:
            self.unsettled = True

    def linear_streams(
        self,
        state: SiteState,
        op: LinearOp,
        inputs: Tensor,
        outputs: Tensor,
        dims: tuple[int, int],
    ) -> None:
        """Read input and output of a linear op."""
        x_kind, z_kind = kind_of(inputs, dims[0]), kind_of(outputs, dims[1])
        if op.x2 is not None:
            products = MeanInput.of(op, inputs)
            a: Found | None = products.moments.moments if products.moments else None
            with self._lock:
                state.mean_input = products.merge(state.mean_input)
        else:
            a = self.look(self.slot(state, "a"), inputs, x_kind, dims[0])
        z_slot = self.slot(state, "z")
        z = self.look(z_slot, outputs, z_kind, dims[1])
        self.write(self.slot(state, "a"), a)
        self.write(z_slot, z)
        if op.patches is not None:
            self.image(state, op, inputs, a)
        if self.detail:
            self.linear_samples(state, op, (inputs, outputs), (x_kind, z_kind), (a, z), dims)

    def linear_samples(
        self,
        state: SiteState,
        op: LinearOp,
        tensors: tuple[Tensor, Tensor],
        kinds: tuple[int, int],
        readings: tuple[Any, Any],
        dims: tuple[int, int] = (-1, -1),
    ) -> None:
        """Keep rows of the output, and of inputs that are rows themselves."""
        z, a = self.slot(state, "z"), self.slot(state, "a")
        self.sample(z, tensors[1], kinds[1], dims[1], readings[1])
        if op.patches is None and op.x2 is None:
            self.sample(a, tensors[0], kinds[0], dims[0], readings[0], PICTURE_ROWS)

    def activation(
        self, site: str, module: str, op: ActivationOp, dim: int
    ) -> tuple[SiteState, Any]:
        """Read the input of an activation op that is about to run."""
        info = SiteInfo(
            *(site, "activation", op.op, module, op.x.shape[dim], 0),
            *(dict(op.params), op.elementwise),
        )
        state = self._state(info)
        return state, self.before(self.slot(state, "z"), op.x, kind_of(op.x, dim), dim)

    def before(self, slot: int, x: Tensor, kind: int, dim: int) -> Any:
        """Read, and at steps with details copy rows of, what the op may overwrite."""
        reading = self.look(slot, x, kind, dim)
        sample = self._sampler.draw(slot, x, kind, dim, reading) if self.detail else None
        return reading, sample

    def activated(
        self, state: SiteState, z: Any, out: Tensor, dim: int, where: tuple[int, int]
    ) -> None:
        """Record an activation op that has just run."""
        self.after((self.slot(state, "z"), self.slot(state, "a")), z, out, kind_of(out, dim), dim)
        self.called(state, where)

    def after(self, slots: tuple[int, int], z: Any, out: Tensor, kind: int, dim: int) -> None:
        """Keep the input that was read, and read the output."""
        z_slot, a_slot = slots
        self.write(z_slot, z[0])
        a = self.look(a_slot, out, kind, dim)
        self.write(a_slot, a)
        if z[1] is not None:
            self._sampler.put(z_slot, z[1])
            self.sample(a_slot, out, kind, dim, a)

    def called(self, state: SiteState, where: tuple[int, int], hooked: bool = False) -> None:
        """Count a call, at the end of the step; and that its gradients are waited for."""
        self._events.append((state, "called, hooked" if hooked else "called", where))

    def read_weight_now(self, state: SiteState, op: LinearOp) -> None:
        """Read a weight that may be gone when the window ends (a sharded one is freed)."""
        inputs = op.x if op.arrange_x is None else op.arrange_x(op.x.detach())
        mean_input = MeanInput.of(op, inputs)
        rows = max(1, inputs.numel() // max(1, inputs.shape[op.x_dim]))
        facts = OpenFacts.of(op, mean_input, rows)
        if facts is not None:
            state.facts = facts if state.facts is None else state.facts.merge(facts)
            state.weight = None

    def arrived(self, state: SiteState, due: bool, share: bool, again: bool) -> None:
        """A gradient came back to a call: for the first time, or once more."""
        what = "repeated"
        if not again:
            what = ("shared" if share else "due") if due else "arrived"
        self._events.append((state, what, None))

    def gradient(self, state: SiteState, name: str, grad: Tensor, dim: int) -> None:
        """Record one gradient stream; called from autograd's threads."""
        if grad.shape[dim] and not grad.is_sparse:
            self.take(self.slot(state, name), grad, kind_of(grad, dim), dim)


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
