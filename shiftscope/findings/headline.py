"""A window of a run in a few numbers, for loggers and tables of many windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shiftscope.findings.reading import Reading, known

if TYPE_CHECKING:
    from shiftscope.snapshot import Snapshot

__all__ = ["headline"]


def headline(snapshot: Snapshot) -> dict[str, float]:
    """A window in a few numbers: the worst share, the decay of the gradient, what is not finite.

    Args:
        snapshot: The window.

    Returns:
        Name to finite number; what was not measured is left out.
    """
    reading = Reading(snapshot)
    shares = [row["shift_share"] for row in reading.judged if known(row.get("shift_share"))]
    out: dict[str, Any] = {"loss": snapshot.manifest.get("loss")}
    out["accuracy"] = snapshot.manifest.get("accuracy")
    if shares:
        out |= {"shift_share_max": max(shares), "shift_share_mean": sum(shares) / len(shares)}
    if reading.gradient is not None:
        out["gradient_decay_decades"] = reading.gradient.total
    out["nonfinite"] = sum(row["nonfinite"] for row in reading.rows if known(row["nonfinite"]))
    return {name: float(value) for name, value in out.items() if known(value)}
