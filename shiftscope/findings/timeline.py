"""Findings of a run: when each first appeared, and where it is heading.

Every window is diagnosed on its own; a finding of the run is that of its last window, dated by the
first step from which it stood. What blocks learning often is not there at initialisation: a
network with normalised weights starts without any shift and is all shift a few steps later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from shiftscope.findings.finding import Evidence, Finding, severity_rank, short
from shiftscope.findings.origin import Origin, find_origin
from shiftscope.findings.reading import known
from shiftscope.findings.thresholds import Thresholds

if TYPE_CHECKING:
    from shiftscope.snapshot import Snapshot
    from shiftscope.trace import Window

__all__ = ["main_phase", "over_time"]

Diagnose = Callable[["Snapshot", Thresholds], list[Finding]]

_SINGLE = frozenset({"not_learning", "coverage"})
"""Causes that one window cannot tell in a run: of the first the course of the loss tells more."""

_ENOUGH = 6
"""Windows with a loss from which its course is judged."""


@dataclass(frozen=True)
class _Seen:
    """One cause in one window."""

    step: int
    finding: Finding

    @property
    def level(self) -> int:
        return severity_rank(self.finding.severity)


def over_time(
    windows: Sequence[Window], thresholds: Thresholds, diagnose: Diagnose
) -> list[Finding]:
    """Combine the findings of the windows of a run.

    Args:
        windows: In the order of steps. Windows of the main phase are judged (training, where there
            are several), as far as the one before values that are not finite appeared.
        thresholds: Limits.
        diagnose: Diagnoses one window.

    Returns:
        One finding for each cause, unordered. Each has the evidence ``appeared_at_step``; those of
        the past, that the last window does not have, are remarks.
    """
    judged = main_phase(windows)
    if not judged:
        return []
    origin = find_origin(windows)
    if origin is not None:  # what comes after NaN appeared describes its finite rest only
        judged = [window for window in judged if window.last < origin.step] or judged[:1]
    seen: dict[str, list[_Seen]] = {}
    for window in judged:
        for finding in diagnose(window.snapshot, thresholds):
            seen.setdefault(finding.cause, []).append(_Seen(window.first, finding))
    steps = [window.first for window in judged]
    kept = {cause: told for cause, told in seen.items() if cause not in _SINGLE}
    found = [_dated(told, steps) for cause, told in kept.items() if cause != "non_finite"]
    if "coverage" in seen:
        found.append(seen["coverage"][-1].finding)
    traced = [] if origin is None else _non_finite(origin, windows, thresholds, diagnose)
    return [*found, *traced, *_loss(judged, found)]


def main_phase(windows: Sequence[Window]) -> list[Window]:
    """The windows that a run is judged by: those of training, else those of the first phase."""
    phases = list(dict.fromkeys(window.phase for window in windows))
    chosen = "train" if "train" in phases else (phases[0] if phases else "")
    return [window for window in windows if window.phase == chosen]


def _dated(told: list[_Seen], steps: Sequence[int]) -> Finding:
    last = told[-1]
    if last.step != steps[-1]:
        return _past(told, steps)
    since = _unbroken(told, steps)
    level = [entry for entry in since if entry.level >= last.level]
    first = level[0].step
    parts = [_when(first, steps)]
    if since[0].step < first:
        parts.append(f"milder ({since[0].finding.severity}) from step {since[0].step} on")
    course = _course(told[0], last)
    late = f"At step {steps[0]} it was not there." if told[0].step > steps[0] else ""
    finding = last.finding
    return replace(
        finding,
        title=f"{finding.title} ({', '.join(parts)})",
        explanation=" ".join(part for part in (finding.explanation, late, course) if part),
        evidence={**finding.evidence, "appeared_at_step": Evidence(first, unit="updates")},
    )


def _unbroken(told: list[_Seen], steps: Sequence[int]) -> list[_Seen]:
    """The last stretch of windows in all of which the cause was seen."""
    places = {step: place for place, step in enumerate(steps)}
    stretch = [told[-1]]
    for entry in reversed(told[:-1]):
        if places[stretch[0].step] - places[entry.step] > 1:
            break
        stretch.insert(0, entry)
    return stretch


def _when(first: int, steps: Sequence[int]) -> str:
    if first == steps[0]:
        return "from the start" if first == 0 else f"from the first window, step {first}"
    return f"appeared at step {first}"


def _past(told: list[_Seen], steps: Sequence[int]) -> Finding:
    worst = max(told, key=lambda entry: entry.level)
    first, last = told[0].step, told[-1].step
    return replace(
        worst.finding,
        severity="info",
        title=f"Passed: {worst.finding.title} ({_span(first, last)}, not at step {steps[-1]})",
        evidence={
            **worst.finding.evidence,
            "appeared_at_step": Evidence(first, unit="updates"),
            "last_seen_at_step": Evidence(last, unit="updates"),
        },
        follows_from="",
    )


def _span(first: int, last: int) -> str:
    return f"at step {first}" if first == last else f"between steps {first} and {last}"


def _course(first: _Seen, last: _Seen) -> str:
    """How the leading number of the finding moved from its first to its last window."""
    name = next(iter(last.finding.evidence), "")
    old, new = first.finding.evidence.get(name), last.finding.evidence.get(name)
    if first.step == last.step or old is None or new is None:
        return ""
    if not (known(old.value) and known(new.value)):
        return ""
    word, start, end = name.replace("_", " "), f"{old.value:.3g}", f"{new.value:.3g}"
    if start == end:
        return f"In this run the {word} stayed at {end}, steps {first.step} to {last.step}."
    went = f"from {start} at step {first.step} to {end} at step {last.step}"
    return f"In this run the {word} went {went}."


def _non_finite(
    origin: Origin, windows: Sequence[Window], thresholds: Thresholds, diagnose: Diagnose
) -> list[Finding]:
    window = next(
        w for w in windows if w.phase == origin.phase and w.first <= origin.step <= w.last
    )
    found = [f for f in diagnose(window.snapshot, thresholds) if f.cause == "non_finite"]
    return [_traced(finding, origin) for finding in found]


def _traced(finding: Finding, origin: Origin) -> Finding:
    place = f"{short(origin.site)}, stream {origin.stream}"
    before = "; ".join(facts.text() for facts in origin.before)
    history = "; ".join(facts.text() for facts in origin.history)
    parts = [
        f"The first value that is not finite {_found_at(origin)} in {place}.",
        "It came in with the data." if origin.inherited else "",
        _unrecorded(origin),
        f"Computed just before it: {before}." if before else "",
        f"The same stream earlier: {history}." if history else "",
    ]
    return replace(
        finding,
        title=(
            f"NaN or infinite values {_found_at(origin)} ({origin.phase}), first "
            f"{'seen ' if _is_gap(origin) else ''}in {place}"
        ),
        sites=(origin.site, *(site for site in finding.sites if site != origin.site)),
        explanation=" ".join([*(part for part in parts if part), finding.explanation]),
        evidence={
            "appeared_at_step": Evidence(origin.step, site=origin.site, unit="updates"),
            "stream": Evidence(origin.stream, site=origin.site),
            "nonfinite_values": Evidence(origin.values, unit="values"),
        },
    )


def _is_gap(origin: Origin) -> bool:
    """Whether steps right before it were not recorded."""
    return origin.recorded_before is not None and origin.step - origin.recorded_before > 1


def _found_at(origin: Origin) -> str:
    if _is_gap(origin):
        return f"appeared between steps {origin.recorded_before} and {origin.step}"
    return f"appeared at step {origin.step}"


def _unrecorded(origin: Origin) -> str:
    if not _is_gap(origin):
        return ""
    return (
        "The steps between were not recorded: if one update made weights infinite, every site is "
        "lost from the next step on, and the place is that of the first site, not of the cause. "
        "Record every step (every=1) from a checkpoint before it to find the place."
    )


def _loss(windows: Sequence[Window], others: Sequence[Finding]) -> list[Finding]:
    """A loss that does not fall, where something that was found may be the reason."""
    told = [(w.first, w.snapshot.manifest.get("loss")) for w in windows]
    losses = [(step, float(loss)) for step, loss in told if loss is not None and known(loss)]
    blocked = any(severity_rank(item.severity) >= severity_rank("serious") for item in others)
    if len(losses) < _ENOUGH or not blocked:
        return []
    first = losses[0][1]
    last = np.array([loss for _, loss in losses[-(len(losses) // 3) :]])
    # One window against the mean of several: its noise is taken to be theirs.
    error = float(last.std()) * math.sqrt(1 + 1 / len(last))
    if last.mean() < first - 2 * error:
        return []
    return [_stalled(losses, (first, float(last.mean()), error))]


def _stalled(losses: Sequence[tuple[int, float]], means: tuple[float, float, float]) -> Finding:
    first, last, error = means
    return Finding(
        cause="not_learning",
        severity="serious",
        title=f"The loss is no lower at the end ({last:.3g}) than at the start ({first:.3g})",
        sites=(),
        evidence={
            "loss_change": Evidence(last - first, se=error, unit="units of the loss"),
            "windows": Evidence(len(losses), unit="windows"),
            "last_step": Evidence(losses[-1][0], unit="updates"),
        },
        threshold=("loss_change", 0.0),
        source="mean of the last third of the windows against the first one, two standard errors",
        explanation=(
            "A network of which something is seriously wrong, and whose loss stands still, will "
            "hardly be helped by more steps."
        ),
        advice="Remove what blocks it (the findings above) and start again.",
    )
