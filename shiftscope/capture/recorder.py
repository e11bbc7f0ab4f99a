"""Accumulating tallies, site by site and stream by stream, on the device of the data.

Nothing here installs a hook. The recorder is handed tensors, reduces each one at once and keeps
O(neurons) numbers and a bounded sample of rows; it never waits for the device.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shiftscope.absences import further_calls
from shiftscope.capture.activation_ops import ActivationOp
from shiftscope.capture.events import Counters
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.mean_inputs import MeanInput
from shiftscope.capture.site_state import EmptyCalls, SiteState, keep_weight, note_changes
from shiftscope.capture.sites import forms_of, place_of
from shiftscope.capture.streams import kept_streams
from shiftscope.capture.weights import (
    OpenFacts,
    close_facts,
    input_power,
    is_readable,
    rounding_scale,
)
from shiftscope.given import whole
from shiftscope.record import STREAMS, SiteInfo, SiteRecord, Stream, WeightFacts
from shiftscope.tally import Counts, Extrema, Moments, RowSample
from shiftscope.theory.saturation import saturation_bounds

__all__ = ["RANK_STRIDE", "Recorder", "Settings"]

_INPUT_ROWS = 128
RANK_STRIDE = 2**40
"""Ranks sample from row numbers that far apart."""
_ELEMENTS = 2**22


@dataclass(frozen=True)
class Settings:
    """What to record.

    Attributes:
        rows: Largest number of rows sampled for each stream of a site.
        seed: Seed of the row sample.
        rank: Number of this process; ranks sample from disjoint row numbers.
        sample_budget: Bytes of samples one site may hold.

    Raises:
        UsageError: The seed is no whole number.
    """

    rows: int = 1024
    seed: int = 0
    rank: int = 0
    sample_budget: int = 2**25

    def __post_init__(self) -> None:
        """Refuse a seed that is none."""
        whole("seed", self.seed, -(2**63), "leave it at 0", most=2**63 - 1)


class Recorder:
    """Records for one window.

    Args:
        settings: What to record.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.states: dict[str, SiteState] = {}
        self.epoch = 0
        self.empty: dict[str, EmptyCalls] = {}
        self.plans: dict[str, list[Any]] | None = None
        self._lock = threading.Lock()
        self._memory = threading.local()

    # -- forward ------------------------------------------------------------------------------

    def linear(
        self, site: str, module: str, op: LinearOp, out: Tensor, where: tuple[int, int]
    ) -> SiteState:
        """Record a linear op that has just run.

        Args:
            site: Its name.
            module: Path of the module it ran in.
            op: The parsed call.
            out: Its output.
            where: ``(number of this forward pass, samples in it)``.

        Returns:
            The site's state, for the gradients to come.
        """
        outputs, inputs = out, op.x
        if op.arrange_z is not None:
            outputs = op.arrange_z(out.detach())
        if op.arrange_x is not None:
            inputs = op.arrange_x(op.x.detach())
        z_dim = op.z_dim if op.arrange_z is None else -1
        x_dim = op.x_dim if op.arrange_x is None else -1
        info = SiteInfo(
            site, "linear", op.op, module, outputs.shape[z_dim], op.fan_in(outputs.shape[z_dim])
        )
        state = self._state(info)
        mean_input = MeanInput.of(op, inputs)
        a = mean_input.moments if op.x2 is not None else self._inputs(state, inputs, x_dim)
        floor = None
        if a is not None and is_readable(op.weight):
            power = input_power(a.moments).to(op.weight.device)
            floor = rounding_scale(op, power)
        z = self.reduce(state, "z", outputs, z_dim, floor=floor)
        with self._lock:
            self._add(state, "z", z, outputs.numel() // max(1, info.neurons))
            if a is not None:
                self._add(state, "a", a, inputs.numel() // max(1, inputs.shape[x_dim]))
            state.mean_input = mean_input.merge(state.mean_input)
            keep_weight(state, op)
            self._count(state, where)
        return state

    def activation(
        self, site: str, module: str, op: ActivationOp, dim: int
    ) -> tuple[SiteState, Stream]:
        """Reduce the input of an activation op that is about to run.

        Nothing is kept until :meth:`activated` is called: an op that raises leaves no trace.

        Returns:
            The site's state and the stream of z.
        """
        width = op.x.shape[dim]
        info = SiteInfo(
            site, "activation", op.op, module, width, 0, dict(op.params), op.elementwise
        )
        state = self._state(info)
        bounds = saturation_bounds(op.op, op.params)
        return state, self.reduce(state, "z", op.x, dim, bounds=bounds)

    def activated(
        self, state: SiteState, z: Stream, out: Tensor, dim: int, where: tuple[int, int]
    ) -> None:
        """Record an activation op that has just run."""
        a = self.reduce(state, "a", out, dim, counts=False)
        with self._lock:
            self._add(state, "z", z, int(out.numel() // max(1, out.shape[dim])))
            self._add(state, "a", a, int(out.numel() // max(1, out.shape[dim])))
            self._count(state, where)

    def passed(self, site: str, carriers: Iterable[str] = ()) -> None:
        """Count a call whose tensors had no rows.

        Args:
            site: Its name.
            carriers: Paths of the modules whose weights it uses.
        """
        with self._lock:
            calls = self.empty.setdefault(site, EmptyCalls())
            calls.carriers.update(carriers)
        self.tell(calls, "calls")

    @property
    def measured(self) -> set[str]:
        """Paths of the modules whose weights were measured in this window."""
        return {path for s in self._all_states() if s.calls for path in s.carriers}

    @property
    def known(self) -> set[str]:
        """Paths of those that were measured in this window or an earlier one."""
        return {path for s in self._all_states() for path in s.carriers}

    @property
    def empty_calls(self) -> dict[str, EmptyCalls]:
        """Calls without rows of this window, by site: that of the form which has rows, if any."""
        own = self.with_rows
        places = {place_of(site): site for site in sorted(own)}
        found = {name: calls for name, calls in [*self.empty.items()] if calls.calls}
        names = {n: n if n in own else places.get(place_of(n), n) for n in found}
        return {names[name]: calls for name, calls in found.items()}

    @property
    def with_rows(self) -> set[str]:
        """Names of the sites that were measured in this window."""
        return {state.info.site for state in self._all_states() if state.calls}

    def _all_states(self) -> list[SiteState]:
        return [*self.states.values()]  # other threads may add sites meanwhile

    # -- backward -----------------------------------------------------------------------------

    def gradient(self, state: SiteState, name: str, grad: Tensor, dim: int) -> None:
        """Record one gradient stream; called from autograd's threads."""
        if grad.shape[dim] == 0 or grad.is_sparse:
            return
        stream = self.reduce(state, name, grad.detach(), dim)
        with self._lock:
            self._add(state, name, stream, grad.numel() // grad.shape[dim])

    def tell(self, state: Counters, name: str) -> None:
        """Count something that happened at a site; called from autograd's threads."""
        with self._lock:
            setattr(state, name, getattr(state, name) + 1)

    def mark(self) -> Any:
        """What a forward pass that begins is told from later, should it raise; None for nothing."""
        return None

    # -- reductions ---------------------------------------------------------------------------

    def reduce(
        self,
        state: SiteState,
        name: str,
        tensor: Tensor,
        dim: int,
        *,
        bounds: tuple[float, float] | None = None,
        counts: bool = True,
        rows: int | None = None,
        floor: Tensor | None = None,
    ) -> Stream:
        """All tallies of one tensor; a tensor that was just reduced elsewhere is not read again.

        ``floor`` is the magnitude of the terms each neuron was summed from: where they cancel,
        rounding acts on them and not on the small result.
        """
        values = tensor.detach()
        start = state.seen.get(name, 0) + self.settings.rank * RANK_STRIDE
        size = self._sample_size(values.shape[dim]) if rows is None else rows
        known = self._recall(tensor, dim, start, size)
        if known is None:
            moments = Moments.of(values, dim)
            if floor is not None:
                scale = torch.where(moments.scale > 0, torch.maximum(moments.scale, floor), 0.0)
                moments = replace(moments, scale=scale)
            known = Stream(
                moments,
                Extrema.of(values, dim) if not name.startswith("grad") else None,
                None,
                RowSample.of(values, size, self.settings.seed, start, dim),
            )
            self._remember(tensor, dim, start, size, known)
        if not counts:
            return known
        return replace(known, counts=Counts.of(values, dim, saturated_outside=bounds))

    def _inputs(self, state: SiteState, inputs: Tensor, dim: int) -> Stream:
        return self.reduce(state, "a", inputs, dim, rows=min(_INPUT_ROWS, self.settings.rows))

    def _sample_size(self, width: int) -> int:
        room = min(_ELEMENTS, self.settings.sample_budget // 16) // max(1, width)
        return max(1, min(self.settings.rows, max(64, room)))

    def _recall(self, tensor: Tensor, dim: int, start: int, size: int) -> Stream | None:
        key = _identity(tensor, dim, start, size)
        for reference, known, stream in getattr(self._memory, "last", ()):
            if known == key and reference() is _anchor(tensor):
                return stream  # type: ignore[no-any-return]
        return None

    def _remember(self, tensor: Tensor, dim: int, start: int, size: int, stream: Stream) -> None:
        key = _identity(tensor, dim, start, size)
        if key is None:
            return
        last = getattr(self._memory, "last", [])
        self._memory.last = [*last[-3:], (weakref.ref(_anchor(tensor)), key, stream)]

    # -- states -------------------------------------------------------------------------------

    def _state(self, info: SiteInfo) -> SiteState:
        with self._lock:
            for name in forms_of(info.site):
                state = self.states.get(name)
                if state is None:
                    made = replace(info, site=name, order=self._order())
                    return self.states.setdefault(name, SiteState(made))
                if _form(state.info) == _form(info):
                    return state
        raise StopIteration  # never: the forms of a place do not end

    def _order(self) -> int:
        """Where a site that is new lies in the order of execution."""
        return len(self.states)

    def _add(self, state: SiteState, name: str, stream: Stream, rows: int) -> None:
        mine = state.streams.get(name)
        if mine is not None and len(mine.moments.mean) != len(stream.moments.mean):
            state.notes[f"{name} had several widths; only the first is kept"] = None
            return
        state.streams[name] = stream if mine is None else mine.merge(stream)
        state.seen[name] = state.seen.get(name, 0) + rows

    def _count(self, state: SiteState, where: tuple[int, int]) -> None:
        forward, samples = where
        state.calls += 1
        if state.forward != forward:
            state.forward, state.samples = forward, state.samples + samples

    def records(self, *, backward: bool = True) -> dict[str, SiteRecord]:
        """The frozen records, on the CPU.

        Args:
            backward: Whether a backward pass was run, so that missing gradients are to be noted.
        """
        called = {name: state for name, state in list(self.states.items()) if state.calls}
        found = {name: _facts(state) for name, state in called.items()}
        facts = close_facts({name: own for name, own in found.items() if own is not None})
        streams = kept_streams({name: state.streams for name, state in called.items()})
        for name, calls in self.empty_calls.items():
            if name in called:
                called[name].notes[further_calls(calls.calls)] = None
        return {
            name: _freeze(state, backward, facts.get(name), streams[name])
            for name, state in called.items()
        }


def _form(info: SiteInfo) -> tuple[int, int, str, str]:
    """What two calls must share to be of one site; a layer may be swapped for another."""
    return info.neurons, info.fan_in, info.kind, info.op


def _identity(tensor: Tensor, dim: int, start: int, size: int) -> tuple[Any, ...] | None:
    if tensor.is_inference():
        return None
    place = (tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))
    return (place, tensor._version, dim % max(1, tensor.dim()), start, size)


def _anchor(tensor: Tensor) -> Tensor:
    # Views of one base are distinct Python objects that may share rows; the base tells them alike.
    return tensor if tensor._base is None else tensor._base


def _facts(state: SiteState) -> OpenFacts | None:
    if state.facts is not None or state.weight is None:
        return state.facts
    note_changes(state)
    return OpenFacts.of(state.weight, state.mean_input, _rows_of(state))


def _freeze(
    state: SiteState, backward: bool, facts: WeightFacts | None, streams: dict[str, Stream]
) -> SiteRecord:
    doubt = state.lies.doubt if state.lies is not None else ""
    notes = dict.fromkeys(filter(None, (doubt, *state.notes)))
    if backward and state.arrived < state.hooked:
        notes[f"gradients of {state.arrived} of {state.hooked} calls arrived"] = None
    alone = state.calls - max(state.hooked, state.arrived)
    if backward and alone > 0:
        notes[
            f"{alone} of {state.calls} calls passed no gradient on "
            "(no_grad, frozen, or inside a custom function or a checkpoint)"
        ] = None
    if state.repeated:
        notes[f"{state.repeated} calls were part of more than one backward pass"] = None
    if facts is None and state.weight is not None:
        notes["the weights could not be read"] = None
    if state.shares != state.shares_due:
        notes[
            f"{state.shares} of {state.shares_due} calls gave an input gradient: no backward gain"
        ] = None
    return SiteRecord(
        state.info,
        state.calls,
        state.samples,
        {name: streams[name] for name in STREAMS if name in streams},
        facts,
        tuple(notes),
        paired=state.shares == state.shares_due,
        lost_since=dict(state.lost_since),
    )


def _rows_of(state: SiteState) -> int:
    return max(1, state.seen.get("z", 0))
