"""Events of a step, counted at once, against counting them one by one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.capture import events
from shiftscope.capture.events import count
from shiftscope.capture.site_state import SiteState
from shiftscope.record import SiteInfo
from shiftscope.tally import native

NAMES = ("calls", "hooked", "arrived", "shares_due", "shares", "repeated")
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(sorted(events._RAISED)),
        st.none() | st.tuples(st.integers(1, 4), st.integers(1, 3)),
    ),
    max_size=12,
)
"""Site, what happened, and number and samples of the forward pass."""


def sites() -> list[SiteState]:
    return [SiteState(SiteInfo(str(k), "activation", "relu", str(k), 3)) for k in range(4)]


def numbers(state: SiteState) -> tuple[int, ...]:
    return (*(getattr(state, name) for name in NAMES), state.samples, state.forward)


class Naive:
    """One site: every event as it comes; samples once for each of its forward passes."""

    def __init__(self) -> None:
        self.raised, self.samples, self.forward = Counter[str](), 0, -1
        self.passes: set[int] = set()

    def count(self, what: str, where: tuple[int, int] | None) -> None:
        self.raised.update(events._RAISED[what])
        if where is not None and where[0] not in self.passes and where[0] != self.forward:
            self.passes.add(where[0])
            self.samples += where[1]

    def end(self) -> None:
        self.forward = max(self.forward, *self.passes, -1)
        self.passes.clear()

    def numbers(self) -> tuple[int, ...]:
        return (*(self.raised[name] for name in NAMES), self.samples, self.forward)


@given(st.lists(EVENTS, max_size=4), st.booleans(), st.booleans())
def test_counts_are_those_of_counting_one_by_one(
    steps: list[Any], in_order: bool, restart: bool
) -> None:
    states, naive = sites(), [Naive() for _ in range(4)]
    for turn, found in enumerate(steps):
        if in_order:  # else numbers of passes come again, and fall, as threads may let them
            found = sorted(found, key=lambda event: event[2] or (0, 0))
            found = [(k, what, w and (w[0] + 4 * turn, w[1])) for k, what, w in found]
        count([(states[site], what, where) for site, what, where in found])
        for site, what, where in found:
            naive[site].count(what, where)
        for own in naive:
            own.end()
        if restart and turn == 1:  # a window ends
            for state in states:
                state.restart()
            naive = [Naive() for _ in range(4)]
        assert list(map(numbers, states)) == [own.numbers() for own in naive]


@pytest.mark.skipif(not native.built(), reason="the compiled part was not built")
def test_passes_in_order_are_counted_by_compiled_code_and_others_are_not() -> None:
    states = sites()
    inside = [(states[0], "called", (5, 2)), (states[1], "shared", None)]
    assert native.count(inside, events._TABLE)
    assert native.count(
        [(states[0], "called", (5, 2)), (states[0], "called", (7, 1))], {"called": 1}
    )
    before = list(map(numbers, states))
    assert before[0] == (3, 0, 0, 0, 0, 0, 3, 7)
    for late in (
        [(states[1], "called", (9, 1)), (states[2], "called", (8, 1))],
        [(states[3], "called", (1, 1)), (states[0], "called", (6, 1))],
        [(states[1], "called", (9, 1)), (states[2], "unknown", None)],
        [(states[1], "called", (9, 1)), (object(), "called", None)],
        [(states[1], "called", (9, 1)), (states[2], "called")],
    ):
        assert not native.count(late, events._TABLE)
        assert list(map(numbers, states)) == before  # nothing of it


def test_each_counter_has_its_bit() -> None:
    for what, names in events._RAISED.items():
        (state, *_) = sites()
        count([(state, what, None)])
        assert {name for name in NAMES if getattr(state, name)} == set(names)
    assert list(events._BITS) == list(NAMES)


def test_what_is_unknown_is_an_error() -> None:
    with pytest.raises(KeyError):
        count([(sites()[0], "sneezed", None)])


def test_both_kinds_of_counters_begin_alike() -> None:
    for kind in (events._Counters, events.Counters):
        made = kind()
        assert (made.forward, *(getattr(made, n) for n in (*NAMES, "samples"))) == (-1, *[0] * 7)
        made.calls += 2
        setattr(made, "hooked", made.hooked + 1)  # noqa: B010 - as Recorder.tell does
        assert (made.calls, made.hooked, kind().calls) == (2, 1, 0)
