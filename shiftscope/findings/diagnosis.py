"""From a snapshot to findings, worst first, and to one verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shiftscope.findings.coverage import coverage
from shiftscope.findings.finding import Finding, counted, severity_rank
from shiftscope.findings.gradients import exploding_gradient, vanishing_gradient
from shiftscope.findings.learning import not_learning
from shiftscope.findings.numerics import below_resolution, non_finite
from shiftscope.findings.reading import Reading, known
from shiftscope.findings.shift import activation_shift
from shiftscope.findings.statistics import norm_statistics
from shiftscope.findings.thresholds import Thresholds
from shiftscope.findings.timeline import main_phase, over_time
from shiftscope.findings.units import dead_units, saturation
from shiftscope.findings.variance import variance_collapse, weight_scale
from shiftscope.given import each, expect

if TYPE_CHECKING:
    from shiftscope.snapshot import Snapshot
    from shiftscope.trace import Trace

__all__ = ["diagnose", "verdict"]

_RULES = (
    non_finite,
    norm_statistics,
    activation_shift,
    weight_scale,
    exploding_gradient,
    vanishing_gradient,
    variance_collapse,
    saturation,
    dead_units,
    below_resolution,
    coverage,
)

_BLOCKING = ("activation_shift", "weight_scale", "saturation", "vanishing_gradient")
_CAUSED_BY = {
    "weight_scale": ("norm_statistics",),
    "exploding_gradient": ("norm_statistics", "weight_scale"),
    "vanishing_gradient": (
        *("norm_statistics", "activation_shift", "weight_scale", "saturation", "dead_units"),
    ),
    "variance_collapse": ("norm_statistics", "activation_shift", "weight_scale", "dead_units"),
    "dead_units": ("activation_shift",),
    "below_resolution": ("activation_shift", "variance_collapse"),
    "not_learning": ("non_finite", *_BLOCKING, "exploding_gradient", "dead_units"),
}
"""Cause -> the causes it may be a consequence of, the likeliest first."""


def diagnose(measured: Snapshot | Trace, thresholds: Thresholds | None = None) -> list[Finding]:
    """Say what is wrong with a network, on which numbers, and what to do.

    Args:
        measured: A snapshot; or a trace, whose findings are dated: the step at which each appeared,
            and for values that are not finite the site, the stream and what stood before them.
        thresholds: Limits; the defaults carry their sources.

    Returns:
        Findings, worst first: one for each cause, with all its sites. An empty list means that
        nothing was found among what was measured.

    Raises:
        UsageError: It is neither snapshot nor trace, or the limits are no thresholds.
    """
    from shiftscope.snapshot import Snapshot
    from shiftscope.trace import Trace  # behind it stands torch

    expect("measured", measured, Snapshot, Trace)
    limits = Thresholds() if thresholds is None else thresholds
    expect("thresholds", limits, Thresholds)
    if isinstance(measured, Trace):
        found = over_time(measured.windows, limits, _of_window)
    else:
        found = _of_window(measured, limits)
    return sorted(_linked(found), key=lambda finding: finding.rank)


def _of_window(snapshot: Snapshot, limits: Thresholds) -> list[Finding]:
    reading = Reading(snapshot)
    found = [finding for rule in _RULES if (finding := rule(reading, limits)) is not None]
    learning = not_learning(reading, limits, found)
    return found if learning is None else [*found, learning]


def verdict(findings: Sequence[Finding], measured: Snapshot | Trace) -> dict[str, str]:
    """The diagnosis in one sentence.

    Args:
        findings: What :func:`diagnose` returned.
        measured: The snapshot or the trace it was given.

    Returns:
        ``{"severity": ..., "sentence": ...}``; severity is that of the worst finding.

    Raises:
        UsageError: An argument is of another kind.
    """
    from shiftscope.snapshot import Snapshot
    from shiftscope.trace import Trace  # behind it stands torch

    expect("measured", measured, Snapshot, Trace)
    findings = each("findings", findings, Finding)
    told = [finding for finding in findings if finding.severity != "info"]
    if not told:
        return {"severity": "info", "sentence": _all_clear(findings, measured)}
    first, rest = told[0], told[1:]
    origin = next((finding for finding in rest if finding.cause == first.follows_from), None)
    cause = f" The cause: {origin.title}." if origin else ""
    others = [finding for finding in rest if finding is not origin]
    following = sum(1 for finding in others if finding.follows_from)
    return {
        "severity": first.severity,
        "sentence": f"{first.title}.{cause}{_remainder(len(others), following)}",
    }


def _linked(found: list[Finding]) -> list[Finding]:
    by_cause = {finding.cause: finding for finding in found}
    return [_with_origin(finding, by_cause) for finding in found]


def _with_origin(finding: Finding, by_cause: dict[str, Finding]) -> Finding:
    for cause in _CAUSED_BY.get(finding.cause, ()):
        origin = by_cause.get(cause)
        if origin is not None and _explains(origin, finding):
            told = f"It follows from {cause.replace('_', ' ')}. {finding.explanation}"
            return replace(finding, follows_from=cause, explanation=told)
    return finding


def _explains(origin: Finding, finding: Finding) -> bool:
    """Whether the origin is a fault itself, and as bad as the effect (or serious at least)."""
    level = severity_rank(origin.severity)
    needed = min(severity_rank(finding.severity), severity_rank("serious"))
    if finding.cause == "not_learning":
        needed = severity_rank("serious")
    return level >= max(needed, severity_rank("watch"))


def _remainder(count: int, following: int) -> str:
    if not count:
        return ""
    further = f" {count} further finding{'s' if count > 1 else ''}"
    if following == count:
        return f"{further} follow{'' if count > 1 else 's'} from it."
    return f"{further}{f', {following} of which follow from others' if following else ''}."


def _all_clear(findings: Sequence[Finding], measured: Snapshot | Trace) -> str:
    from shiftscope.trace import Trace

    if isinstance(measured, Trace):
        judged = main_phase(measured.windows)
        if not judged:
            return f"Nothing was measured: {measured.why_empty[0]}."
        told = _all_clear(findings, judged[-1].snapshot)
        many = counted(len(judged), "window")
        return f"{told} Steps {judged[0].first} to {judged[-1].last}, {many}."
    reading = Reading(measured)
    places = counted(len(reading.rows), "site")
    shares = any(known(row.get("shift_share")) for row in reading.rows)
    backward = any(known(row.get("grad_z_var")) for row in reading.linear)
    if not reading.rows and measured.manifest.get("weights_only"):
        return "Nothing was measured: no weights were found that can be read."
    if not reading.rows:
        return "Nothing was measured: no linear map and no activation function was seen."
    if not shares:
        return f"Weights only: {places}, no data went through, so no verdict on signals."
    if not backward:
        return f"No fault found in the forward pass at {places}; gradients were not measured."
    remarks = len(findings)
    tail = f" ({remarks} remark{'s' if remarks > 1 else ''})" if remarks else ""
    return f"No fault found at {places}, forward and backward{tail}."
