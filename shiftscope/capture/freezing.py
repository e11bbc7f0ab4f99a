"""From the growing numbers of sites to the frozen records of a window."""

from __future__ import annotations

from collections.abc import Mapping

from shiftscope.absences import further_calls
from shiftscope.capture.site_state import EmptyCalls, SiteState, note_changes
from shiftscope.capture.streams import kept_streams
from shiftscope.capture.weights import OpenFacts, close_facts
from shiftscope.record import STREAMS, SiteRecord, Stream, WeightFacts

__all__ = ["frozen"]


def frozen(
    called: Mapping[str, SiteState], empty: Mapping[str, EmptyCalls], backward: bool
) -> dict[str, SiteRecord]:
    """The records of some sites, on the CPU.

    Args:
        called: The sites that were measured.
        empty: Calls without rows, by site.
        backward: Whether a backward pass was run, so that missing gradients are to be noted.
    """
    found = {name: _facts(state) for name, state in called.items()}
    facts = close_facts({name: own for name, own in found.items() if own is not None})
    streams = kept_streams({name: state.streams for name, state in called.items()})
    for name, calls in empty.items():
        if name in called:
            called[name].notes[further_calls(calls.calls)] = None
    return {
        name: _freeze(state, backward, facts.get(name), streams[name])
        for name, state in called.items()
    }


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
        notes[
            f"{state.repeated} calls were part of more than one backward pass: gradients are those "
            "of each by itself, not of their sum"
        ] = None
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
