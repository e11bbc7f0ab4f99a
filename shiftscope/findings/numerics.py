"""Numbers that cannot be trusted: not finite, or below the resolution of their floats."""

from __future__ import annotations

import numpy as np

from shiftscope.findings.finding import Evidence, Finding, counted, short
from shiftscope.findings.reading import Reading, Row, known
from shiftscope.findings.thresholds import Thresholds

__all__ = ["below_resolution", "non_finite"]


def non_finite(reading: Reading, thresholds: Thresholds) -> Finding | None:
    """Find NaN and infinite values.

    Args:
        reading: The snapshot.
        thresholds: Limits (none is used: one value is enough).

    Returns:
        One finding, sites in the order in which the values appeared, or None.
    """
    rows = [row for row in reading.rows if known(row.get("nonfinite")) and row["nonfinite"] > 0]
    broken = _broken_weights(reading)
    if broken:
        return _in_weights(broken, rows)
    if not rows:
        return None
    rows.sort(key=lambda row: _appearance(reading, row))
    first = rows[0]
    return Finding(
        cause="non_finite",
        severity="critical",
        title=(
            f"NaN or infinite values at {counted(len(rows), 'site')}, "
            f"first at {short(first['site'])}"
        ),
        sites=tuple(str(row["site"]) for row in rows),
        evidence={
            "nonfinite_values": Evidence(int(sum(row["nonfinite"] for row in rows)), unit="values"),
            "first_site": Evidence(int(first["nonfinite"]), unit="values", site=str(first["site"])),
        },
        threshold=("nonfinite", 0.0),
        source="any value that is not finite",
        explanation=(
            "They are left out of all statistics, so every other number describes the finite rest. "
            f"The notes of {short(first['site'])} name the stream; forward values come first."
        ),
        advice=(
            "Look at the first site: its input and its weights. If those are finite, the range of "
            "the format was exceeded (try float32 or bfloat16) or the step was too large. If the "
            "data already hold NaN, clean them."
        ),
    )


def _broken_weights(reading: Reading) -> dict[str, int]:
    """Sites with weights that are not finite, in order of execution -> how many neurons have."""
    found = {}
    for row in reading.rows:
        record = reading.snapshot.records.get(str(row["site"]))
        if record is not None and record.weights is not None:
            found[str(row["site"])] = int((~np.isfinite(record.weights.norm2)).sum())
    return {site: neurons for site, neurons in found.items() if neurons}


def _in_weights(broken: dict[str, int], rows: list[Row]) -> Finding:
    first, neurons = next(iter(broken.items()))
    behind = [str(row["site"]) for row in rows if str(row["site"]) not in broken]
    return Finding(
        cause="non_finite",
        severity="critical",
        title=f"NaN or infinite weights at {counted(len(broken), 'site')}, first at {short(first)}",
        sites=(*broken, *behind),
        evidence={
            "neurons": Evidence(sum(broken.values()), unit="neurons with such weights"),
            "first_site": Evidence(neurons, unit="neurons", site=first),
            "nonfinite_values": Evidence(
                int(sum(row["nonfinite"] for row in rows)), unit="values behind them"
            ),
        },
        threshold=("nonfinite", 0.0),
        source="any weight that is not finite",
        explanation=(
            "Training had diverged, or a conversion left the range of the format. Everything "
            "behind the first site is worthless."
        ),
        advice="Go back to the last checkpoint whose weights are all finite.",
    )


def _appearance(reading: Reading, row: Row) -> tuple[bool, float]:
    """Forward values in order of execution, then gradients in the order they are computed."""
    record = reading.snapshot.records.get(str(row["site"]))
    streams = record.streams if record is not None else {}
    tallies = [s.counts for name, s in streams.items() if name in ("a", "z") and s.counts]
    forward = any(bool(counts.nonfinite.any()) for counts in tallies)
    return not forward, row["order"] if forward else -row["order"]


def below_resolution(reading: Reading, thresholds: Thresholds) -> Finding | None:
    """Find sites whose variances are rounding noise.

    Args:
        reading: The snapshot.
        thresholds: Limits.

    Returns:
        One finding, worst first, or None.
    """
    lost = [row for row in reading.rows if known(row.get("resolution_lost"))]
    rows = [row for row in lost if row["resolution_lost"] > thresholds.resolution]
    if not rows:
        return None
    rows.sort(key=lambda row: (-row["resolution_lost"], row["order"]))
    worst = rows[0]
    return Finding(
        cause="below_resolution",
        severity="watch",
        title=f"At {len(rows)} of {len(lost)} sites the variance of z is rounding noise",
        sites=tuple(str(row["site"]) for row in rows),
        evidence={
            "neurons_lost": Evidence(
                float(worst["resolution_lost"]),
                rows=int(worst["count"]),
                site=str(worst["site"]),
                unit="of the neurons",
            )
        },
        threshold=("resolution", thresholds.resolution),
        source=thresholds.source("resolution"),
        explanation=(
            "Their mean is so much larger than their spread that floats cannot hold the spread. "
            "Such sites do not enter the profiles over the depth; a neuron that gives one constant "
            "value for every row looks the same."
        ),
        advice=(
            "Measure a double-precision copy: ss.analyze(..., dtype=torch.float64), or "
            "--dtype float64."
        ),
    )
