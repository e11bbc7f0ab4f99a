"""Layers that had nothing to be measured: why, and what becomes of it where others measured them.

A layer that is not called in one window, or on one rank, may well be measured in another one: an
expert that got no tokens, an early exit. What was absent is told of the one, and is no gap of both.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

__all__ = [
    *("NOT_CALLED", "NOT_NOW", "NO_GRADIENTS", "TRANSFORMED", "UNRECORDED"),
    *("further_calls", "is_no_rows", "joined_gaps", "joined_notes", "no_rows"),
]

NOT_CALLED = "not called"
NOT_NOW = "not called in these steps"
NO_GRADIENTS = "called in another phase only: modules run under no_grad count for evaluation"
TRANSFORMED = "called under a transform of torch.func only (vmap, grad): not measured there"
UNRECORDED = (
    "called for its graph or its shapes only (tracing, fake tensors, a CUDA graph), "
    "or in further batches of a validation or evaluations of a closure"
)
_WITHOUT_CALLS = (NOT_CALLED, NOT_NOW)
_ABSENT = (*_WITHOUT_CALLS, NO_GRADIENTS, TRANSFORMED, UNRECORDED)
_NO_ROWS = re.compile(r"called (\d+) times?, always with no rows")
_FURTHER = re.compile(r"(\d+) further calls? had no rows")

Gap = tuple[str, str]


def no_rows(calls: int) -> str:
    """The reason of a gap: a layer was called so often, with empty batches only."""
    return f"called {calls} time{_s(calls)}, always with no rows (empty batches)"


def is_no_rows(reason: str) -> bool:
    """Whether the reason of a gap is that all calls were empty."""
    return _NO_ROWS.match(reason) is not None


def further_calls(calls: int) -> str:
    """The note at a site that had rows in other calls."""
    return f"{calls} further call{_s(calls)} had no rows"


def joined_notes(notes: Iterable[str]) -> tuple[str, ...]:
    """Notes of several records of one site, each once; calls without rows are added up."""
    kept: dict[str, None] = {}
    calls = 0
    for note in notes:
        found = _FURTHER.fullmatch(note)
        calls += int(found[1]) if found else 0
        kept[further_calls(0) if found else note] = None
    return tuple(further_calls(calls) if _FURTHER.fullmatch(note) else note for note in kept)


def joined_gaps(
    gaps: Iterable[Gap], places: Container[str]
) -> tuple[tuple[Gap, ...], dict[str, int]]:
    """Gaps of several snapshots, as gaps of all of them together.

    Args:
        gaps: Those of one after another.
        places: Names of the sites that are measured in one of them, and paths of their modules.

    Returns:
        The gaps, each once, without those of what was absent in one and is measured in another;
        and for such places how many calls had no rows.
    """
    calls: dict[str, int] = {}
    reasons: dict[str, dict[str, None]] = {}
    for path, reason in gaps:
        found = _NO_ROWS.match(reason)
        if found:
            calls[path] = calls.get(path, 0) + int(found[1])
        reasons.setdefault(path, {})[no_rows(0) if found else reason] = None
    kept = []
    for path, told in reasons.items():
        for reason in _lasting(told, path in places):
            kept.append((path, no_rows(calls[path]) if reason == no_rows(0) else reason))
    return tuple(kept), {path: number for path, number in calls.items() if path in places}


def _lasting(reasons: Iterable[str], measured: bool) -> list[str]:
    """The reasons that hold of all together."""
    told = [*reasons]
    if measured:
        return [reason for reason in told if reason not in (*_ABSENT, no_rows(0))]
    called = [reason for reason in told if reason not in _WITHOUT_CALLS]
    return called or told[-1:]


def _s(number: int) -> str:
    return "" if number == 1 else "s"
