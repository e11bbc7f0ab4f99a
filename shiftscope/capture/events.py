"""What happens at the sites during a step, counted when it ends."""

from __future__ import annotations

from collections.abc import Sequence

from shiftscope.capture.site_state import SiteState

__all__ = ["Event", "count"]

Event = tuple[SiteState, str, tuple[int, int] | None]
"""What happened at a site; of a call also the number of its forward pass and the samples in it."""

_COUNTERS = {
    "called": ("calls",),
    "called, hooked": ("calls", "hooked"),
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


def count(events: Sequence[Event]) -> None:
    """Raise the counters of the sites; samples once for each forward pass."""
    passes: dict[int, set[SiteState]] = {}
    pass_of, number, samples, mine = None, 0, 0, set[SiteState]()
    for state, what, where in events:
        if what == "shared":  # one event in two
            state.arrived += 1
            state.shares_due += 1
            state.shares += 1
        elif what == "called, hooked":  # nearly all others
            state.calls += 1
            state.hooked += 1
        else:
            for name in _COUNTERS[what]:
                setattr(state, name, getattr(state, name) + 1)
        if where is None:
            continue
        if where is not pass_of:  # the calls of one pass come one after another
            pass_of, (number, samples) = where, where
            mine = passes.setdefault(number, set())
        if state.forward != number and state not in mine:
            mine.add(state)
            state.samples += samples
    for number, states in passes.items():
        for state in states:
            state.forward = max(state.forward, number)
