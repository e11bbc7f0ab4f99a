"""Units that do not respond: saturated ones, and ones that were never active."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shiftscope.findings.finding import Evidence, Finding, short
from shiftscope.findings.reading import Reading, Row, known, samples_of
from shiftscope.findings.thresholds import Thresholds
from shiftscope.theory.saturation import SATURATION_MARGIN, can_die, saturation_bounds

__all__ = ["dead_units", "never_active_bound", "saturation"]

_CONFIDENCE = 0.95


def saturation(reading: Reading, thresholds: Thresholds) -> Finding | None:
    """Find bounded activations that are flat for most rows.

    Args:
        reading: The snapshot.
        thresholds: Limits.

    Returns:
        One finding with all sites, worst first, or None.
    """
    bounded = [row for row in reading.activations if saturation_bounds(str(row["op"])) is not None]
    rows = _flat(bounded, thresholds.saturation_watch, thresholds.errors)
    if not rows:
        return None
    worst = rows[0]
    severe = bool(_flat([worst], thresholds.saturation, thresholds.errors))
    name = "saturation" if severe else "saturation_watch"
    return Finding(
        cause="saturation",
        severity="serious" if severe else "watch",
        title=(
            f"{worst['op']} is flat for {worst['saturated']:.0%} of the rows at "
            f"{short(worst['site'])}, above half at {len(rows)} of {len(bounded)} such sites"
        ),
        sites=tuple(str(row["site"]) for row in rows),
        evidence={
            "saturated_fraction": Evidence(
                float(worst["saturated"]),
                se=_binomial_error(worst),
                rows=samples_of(worst),
                site=str(worst["site"]),
            )
        },
        threshold=(name, getattr(thresholds, name)),
        source=thresholds.source(name),
        explanation=(
            f"The output lies within {SATURATION_MARGIN:.0%} of its range from a bound, where the "
            "derivative is nearly zero: neither signals nor gradients pass."
        ),
        advice=(
            "Bring z back into the range where the activation responds: smaller weights "
            "(ss.rescale_(model, batch)), a smaller learning rate, or normalisation before the "
            "activation."
        ),
    )


def dead_units(reading: Reading, thresholds: Thresholds) -> Finding | None:
    """Find units with a flat half line (ReLU and kin) that no row made active.

    Args:
        reading: The snapshot.
        thresholds: Limits.

    Returns:
        One finding with all sites, worst first, or None.
    """
    able = [row for row in reading.activations if can_die(str(row["op"]))]
    counted = [row for row in able if known(row.get("dead")) and row["neurons"]]
    rows = [row for row in counted if _dead_share(row) > thresholds.dead_watch]
    if not rows:
        return None
    rows.sort(key=lambda row: (-_dead_share(row), row["order"]))
    worst, total = rows[0], sum(int(row["dead"]) for row in rows)
    bound = never_active_bound(samples_of(worst))
    severity = _dead_severity(_dead_share(worst), bound, thresholds)
    name = "dead" if severity in {"serious", "critical"} else "dead_watch"
    return Finding(
        cause="dead_units",
        severity=severity,
        title=(
            f"{int(worst['dead'])} of {int(worst['neurons'])} units of {short(worst['site'])} were "
            f"never active ({total} units at {len(rows)} of {len(counted)} sites)"
        ),
        sites=tuple(str(row["site"]) for row in rows),
        evidence={
            "dead_share": Evidence(_dead_share(worst), site=str(worst["site"])),
            "probability_active": Evidence(
                0, high=bound, rows=samples_of(worst), site=str(worst["site"])
            ),
        },
        threshold=(name, getattr(thresholds, name)),
        source=thresholds.source(name),
        explanation=(
            f"None of {samples_of(worst)} independent samples made them active: P(active) < 3/N = "
            f"{3 / max(samples_of(worst), 1):.2g} (exactly {bound:.2g}) with 95 % confidence. "
            "A dead unit has no gradient and does not come back by itself."
        ),
        advice=(
            "Check scale and mean of the input and the learning rate; re-initialise dead units, "
            "use a leaky activation, or normalise before the activation so that every unit is "
            "active for some samples."
        ),
    )


def never_active_bound(samples: int) -> float:
    """Upper 95 % bound of P(active) after no activity in ``samples`` samples (Clopper-Pearson).

    Args:
        samples: Independent samples.

    Returns:
        ``1 - 0.05**(1/samples)``, close to 3/samples; 1 without samples.
    """
    return -math.expm1(math.log(1 - _CONFIDENCE) / samples) if samples > 0 else 1.0


def _flat(rows: Sequence[Row], limit: float, errors: float) -> list[Row]:
    sure = [
        row
        for row in rows
        if known(row.get("saturated")) and row["saturated"] - errors * _binomial_error(row) > limit
    ]
    return sorted(sure, key=lambda row: (-row["saturated"], row["order"]))


def _binomial_error(row: Row) -> float:
    samples, share = samples_of(row), float(row["saturated"])
    return math.sqrt(share * (1 - share) / samples) if samples else math.inf


def _dead_share(row: Row) -> float:
    return float(row["dead"]) / float(row["neurons"])


def _dead_severity(share: float, bound: float, thresholds: Thresholds) -> str:
    if bound > thresholds.dead_bound:
        return "info"
    if share >= 1.0:
        return "critical"
    return "serious" if share > thresholds.dead else "watch"
