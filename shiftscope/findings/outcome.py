"""Loss and accuracy of two measurements: whether the second is worse than chance explains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shiftscope.findings.finding import Evidence, Finding

__all__ = ["worse_outcome"]

_STEPS = ((0.10, "critical"), (0.03, "serious"), (0.0, "watch"))
"""Accuracy that is lost -> how grave that is."""
_RISES = ((2.0, "serious"), (1.1, "watch"))
"""How many times the loss -> how grave that is, where no accuracy was measured."""
_ERRORS = 3.0
"""Standard errors of the difference that chance is given."""
_LEAST = 0.01
"""Accuracy that chance is given where nobody counted the rows."""


def worse_outcome(before: Mapping[str, Any], after: Mapping[str, Any]) -> Finding | None:
    """Judge the scores of two manifests.

    The same rows in both make the error of the difference smaller than it is taken here.

    Args:
        before: Manifest of the first snapshot.
        after: That of the second.

    Returns:
        A finding, or None where nothing is worse, or nothing was measured in both. Without an
        accuracy the loss is judged by its ratio, which says nothing where it was not positive.
    """
    losses = [_number(m.get("loss")) for m in (before, after)]
    if "loss" in after and math.isfinite(losses[0]) and not math.isfinite(losses[1]):
        return _by_loss(*losses)  # a file holds None in place of NaN
    old, new = (_number(m.get("accuracy")) for m in (before, after))
    if math.isfinite(old) and math.isfinite(new):
        return _by_accuracy(old, new, _error(old, before), _error(new, after))
    return _by_loss(*losses) if all(map(math.isfinite, losses)) else None


def _by_accuracy(old: float, new: float, *errors: float) -> Finding | None:
    fall, error = old - new, math.hypot(*errors)
    if fall <= (_ERRORS * error or _LEAST):
        return None
    severity = next(level for least, level in _STEPS if fall >= least)
    return _finding(
        severity,
        f"Accuracy fell from {old:.1%} to {new:.1%}",
        {"accuracy_before": Evidence(old, se=errors[0]), "accuracy": Evidence(new, se=errors[1])},
        ("standard_errors", _ERRORS),
    )


def _by_loss(old: float, new: float) -> Finding | None:
    title = f"The loss rose from {old:.4g} to {new:.4g}"
    if not math.isfinite(new):
        severity, title = "critical", f"The loss was {old:.4g} and is not finite"
    else:
        times = new / old if old > 0 else math.nan
        severity = next((level for least, level in _RISES if times >= least), "")
        if not severity:
            return None
    evidence = {"loss_before": Evidence(old), "loss": Evidence(new)}
    return _finding(severity, title, evidence, ("loss_ratio", _RISES[-1][0]))


def _finding(
    severity: str, title: str, evidence: dict[str, Evidence], threshold: tuple[str, float]
) -> Finding:
    return Finding(
        cause="outcome",
        severity=severity,
        title=title,
        sites=(),
        evidence=evidence,
        threshold=threshold,
        source="difference of two measurements",
        explanation="The network as a whole does its task worse, whatever its layers look like.",
        advice="Train on from here, or keep the first one.",
    )


def _error(accuracy: float, manifest: Mapping[str, Any]) -> float:
    samples = _number(manifest.get("accuracy_rows") or manifest.get("samples"))
    return math.sqrt(accuracy * (1 - accuracy) / samples) if samples > 0 else 0.0


def _number(value: Any) -> float:
    plain = isinstance(value, float | int) and not isinstance(value, bool)
    return float(value) if plain else math.nan
