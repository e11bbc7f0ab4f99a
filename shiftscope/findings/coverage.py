"""What was not measured: gaps, coverage, missing gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftscope.findings.finding import Evidence, Finding
from shiftscope.findings.reading import Reading, known
from shiftscope.findings.thresholds import Thresholds

__all__ = ["coverage", "seen_share"]


def coverage(reading: Reading, thresholds: Thresholds) -> Finding | None:
    """Tell what was not measured, so that silence is never taken for health.

    Args:
        reading: The snapshot.
        thresholds: Limits (none is used).

    Returns:
        One finding of severity info, or None when everything was measured.
    """
    gaps = tuple(reading.snapshot.gaps)
    backward = any(known(row.get("grad_z_var")) for row in reading.linear)
    if not reading.rows:  # where no site was seen, a loss does not help
        backward = bool(reading.snapshot.manifest.get("gradients"))
    seen = seen_share(reading.snapshot.coverage, "parameters")
    partly = seen is not None and seen < 1.0
    if not gaps and backward and not partly:
        return None
    parts = [f"{len(gaps)} module{'s' if len(gaps) > 1 else ''}"] if gaps else []
    empty = not reading.rows and not reading.snapshot.manifest.get("weights_only")
    forward = any(known(row.get("z_mean")) for row in reading.rows) or empty
    parts += [] if forward else ["signals"]
    parts += [] if backward else ["gradients"]
    parts = parts or ["some parameters"]
    evidence = {"gaps": Evidence(len(gaps), unit="modules")}
    if seen is not None:
        evidence["parameters_seen"] = Evidence(100 * seen, unit="% of the parameters")
    return Finding(
        cause="coverage",
        severity="info",
        title=f"Not measured: {_listed(parts)}",
        sites=tuple(dict.fromkeys(str(module) for module, _ in gaps)),
        evidence=evidence,
        threshold=("coverage", 1.0),
        source="everything that carries weights is to be measured, or named with the reason",
        explanation=(
            "What was not measured is not known to be healthy. The reasons stand under coverage."
        ),
        advice=_advice(forward, backward),
    )


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _advice(forward: bool, backward: bool) -> str:
    if not forward:
        return "Give a model and data (--model, --data) to have signals and gradients measured."
    if not backward:
        return "Give a loss (loss_fn, --loss) to have gradients measured too."
    return "Nothing, if these parts do not matter here."


def seen_share(table: Mapping[str, Any], name: str) -> float | None:
    """Share seen of one row of the coverage table, None where it is not known."""
    row = table.get(name)
    if not isinstance(row, Mapping):
        return None
    seen, total = row.get("seen"), row.get("total")
    return float(seen or 0) / float(total) if known(seen) and known(total) and total else None
