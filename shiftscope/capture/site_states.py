"""The sites of a window: which there are, and which of them were measured."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace

from shiftscope.capture.events import Counters
from shiftscope.capture.site_state import EmptyCalls, SiteState
from shiftscope.capture.sites import forms_of, place_of
from shiftscope.record import SiteInfo

__all__ = ["SiteStates"]


class SiteStates:
    """What is known of each site; safe from any thread.

    Attributes:
        states: By name of the site, those of earlier windows included.
        empty: Calls without rows, by the name of the site they would be of.
    """

    def __init__(self) -> None:
        self.states: dict[str, SiteState] = {}
        self.empty: dict[str, EmptyCalls] = {}
        self._lock = threading.Lock()

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

    def tell(self, state: Counters, name: str) -> None:
        """Count something that happened at a site; called from autograd's threads."""
        with self._lock:
            setattr(state, name, getattr(state, name) + 1)

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
    def with_rows(self) -> dict[str, SiteState]:
        """The sites that were measured in this window."""
        return {state.info.site: state for state in self._all_states() if state.calls}

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

    def _all_states(self) -> list[SiteState]:
        return [*self.states.values()]  # other threads may add sites meanwhile


def _form(info: SiteInfo) -> tuple[int, int, str, str]:
    """What two calls must share to be of one site; a layer may be swapped for another."""
    return info.neurons, info.fan_in, info.kind, info.op
