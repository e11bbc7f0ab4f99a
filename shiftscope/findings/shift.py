"""Activation shift: means of z that differ more between neurons than z varies over samples."""

from __future__ import annotations

from collections.abc import Sequence

from shiftscope.findings.advice import kills_gradient, ops_of, shift_advice
from shiftscope.findings.finding import Evidence, Finding, percent, short
from shiftscope.findings.profile import Profile
from shiftscope.findings.reading import Reading, Row, known, samples_of, share_error
from shiftscope.findings.thresholds import Thresholds

__all__ = ["activation_shift"]


def activation_shift(reading: Reading, thresholds: Thresholds) -> Finding | None:
    """Find sites where most of the pooled variance of z lies between neurons.

    The share is judged at the input of the nonlinearities, so that shift which a normalisation
    removes does not count, and never alone: together with the decay of the gradient it is a
    verdict, without it it is a remark.

    Args:
        reading: The snapshot.
        thresholds: Limits.

    Returns:
        One finding with all sites, worst first, or None.
    """
    rows = _shifted(reading, thresholds)
    if not rows:
        return None
    severity, because = _severity(reading, rows, thresholds)
    worst = rows[0]
    return Finding(
        cause="activation_shift",
        severity=severity,
        title=_title(reading, rows, severity),
        sites=tuple(str(row["site"]) for row in rows),
        evidence=_evidence(reading, worst),
        threshold=("shift_share", thresholds.shift_share),
        source=thresholds.source("shift_share"),
        explanation=(
            f"At {len(rows)} of {len(reading.judged)} places where a nonlinearity reads its input, "
            "more of the variance of z is a constant offset that differs from neuron to neuron "
            f"than a response to the samples. {because}"
        ),
        advice=shift_advice(reading, rows, thresholds),
    )


def _shifted(reading: Reading, thresholds: Thresholds) -> list[Row]:
    def low(row: Row) -> float:
        return float(row["shift_share"]) - thresholds.errors * share_error(row)

    measured = [row for row in reading.judged if known(row.get("shift_share"))]
    high = [row for row in measured if low(row) > thresholds.shift_share]
    return sorted(high, key=lambda row: (-row["shift_share"], row["order"]))


def _severity(reading: Reading, rows: Sequence[Row], limits: Thresholds) -> tuple[str, str]:
    if not _to_blame(rows):
        return _innocent(reading, rows, limits)
    if reading.silent:
        severity, because = _forward_severity(reading, rows, limits, "")
        told = "No gradient at all arrives at the first layers."
        return ("critical" if severity == "serious" else severity), f"{because} {told}".strip()
    if reading.gradient is not None:
        return _measured_severity(reading.gradient, rows, limits)
    capped = "Without a loss no gradient was measured, so the verdict is capped at serious."
    return _forward_severity(reading, rows, limits, capped)


def _measured_severity(decay: Profile, rows: Sequence[Row], limits: Thresholds) -> tuple[str, str]:
    told = f"{decay.total:.1f} decades between the last and the first hidden layer"
    if decay.exceeds(limits.total_decay, limits.errors):
        return "critical", (
            f"The gradient shrinks by {told}, which shift explains: the weights pass the mean "
            "forward and only the rest backward. Networks like this one do not start to learn."
        )
    if decay.exceeds(limits.decay_watch, limits.errors):
        return "watch", f"The gradient shrinks by {told}: slow, not yet fatal."
    return "watch", f"The gradient does not die on the way ({told}), so this alone is no fault."


def _forward_severity(
    reading: Reading, rows: Sequence[Row], limits: Thresholds, remark: str
) -> tuple[str, str]:
    predicted, within = reading.predicted_gradient, reading.within
    if predicted is not None and predicted.exceeds(limits.total_decay, limits.errors):
        return "serious", (
            f"From weights and activations alone the gradient is predicted to shrink by "
            f"{predicted.total:.1f} decades over the hidden layers. {remark}"
        )
    if within is not None and within.exceeds(limits.collapse, limits.errors):
        return "serious", (
            f"The variance within neurons falls by {within.total:.1f} decades over the depth: "
            f"samples become indistinguishable. {remark}"
        )
    return "watch", f"No sign that signals die over the depth. {remark}"


def _to_blame(rows: Sequence[Row]) -> bool:
    """Whether shift can take the gradient here (also where an activation is not known)."""
    ops = ops_of(rows)
    return not ops or any(kills_gradient(op) for op in ops)


def _innocent(reading: Reading, rows: Sequence[Row], limits: Thresholds) -> tuple[str, str]:
    decay = reading.gradient or reading.predicted_gradient
    told = (
        f"Under {ops_of(rows)[0]} shift alone does not take the gradient: what the mean adds to "
        "the forward pass the slope gives back on the way backward."
    )
    if decay is None or not decay.exceeds(limits.decay_watch, limits.errors):
        return "info", told
    return "watch", f"{told} The decay by {decay.total:.1f} decades has another cause."


def _title(reading: Reading, rows: Sequence[Row], severity: str) -> str:
    share = (
        f"{percent(rows[0]['shift_share'])} of the variance entering {short(rows[0]['site'])} "
        "is offset between neurons"
    )
    decay = reading.gradient or reading.predicted_gradient
    if severity in {"critical", "serious"} and decay is not None:
        verb = "shrinks" if reading.gradient else "is predicted to shrink"
        return f"Means, not signals: {share}, and the gradient {verb} by {decay.total:.1f} decades"
    return f"Activation shift at {len(rows)} of {len(reading.judged)} sites: {share}"


def _evidence(reading: Reading, worst: Row) -> dict[str, Evidence]:
    evidence = {
        "shift_share": Evidence(
            float(worst["shift_share"]),
            se=share_error(worst),
            rows=samples_of(worst),
            site=str(worst["site"]),
        )
    }
    profiles = {
        "gradient_decay": reading.gradient,
        "predicted_decay": None if reading.gradient else reading.predicted_gradient,
        "within_collapse": reading.within,
    }
    for name, profile in profiles.items():
        if profile is not None:
            evidence[name] = Evidence(
                profile.total, se=profile.total_se, rows=profile.samples, unit="decades"
            )
    return evidence
