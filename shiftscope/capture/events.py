"""What happens at the sites during a step, counted when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shiftscope.tally import native

__all__ = ["Counters", "Event", "count"]


class _Counters:
    """What is counted at a site.

    Attributes:
        calls: Calls of the op.
        hooked: Those whose gradients are waited for.
        arrived: Those whose gradients came.
        shares_due: Those whose input had a gradient to come.
        shares: Those whose input got one.
        repeated: Those that were part of more than one backward pass.
        samples: Samples of all forward passes it was called in.
        forward: Number of the last of them; -1 for none.
    """

    calls = hooked = arrived = shares_due = shares = repeated = samples = 0
    forward = -1


if TYPE_CHECKING:
    Counters = _Counters
else:
    Counters = native.Counters or _Counters  # the same, where compiled code can raise them

Event = tuple[Counters, str, tuple[int, int] | None]
"""What happened at a site; of a call also the number of its forward pass and the samples in it."""

_RAISED = {
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

_BITS = {"calls": 1, "hooked": 2, "arrived": 4, "shares_due": 8, "shares": 16, "repeated": 32}
"""Each counter as a bit; the order is that of the compiled part."""
_TABLE = {what: sum(map(_BITS.__getitem__, names)) for what, names in _RAISED.items()}


def count(events: list[Event]) -> None:
    """Raise the counters of the sites; samples once for each forward pass."""
    # Nearly always passes come one after another: compiled code counts those.
    if not (native.built() and native.count(events, _TABLE)):
        _count_any(events)


def _count_any(events: list[Event]) -> None:
    """The same for passes in any order, as of several threads."""
    passes: dict[int, set[Counters]] = {}
    for site, what, where in events:
        for name in _RAISED[what]:
            setattr(site, name, getattr(site, name) + 1)
        if where is None:
            continue
        number, samples = where
        known = passes.setdefault(number, set())
        if site.forward != number and site not in known:
            known.add(site)
            site.samples += samples
    for number, sites in passes.items():
        for site in sites:
            site.forward = max(site.forward, number)
