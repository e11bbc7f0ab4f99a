"""Why a panel is empty: values that were there and not finite are told from those that were not."""

from __future__ import annotations

from shiftscope.columns import as_float
from shiftscope.draw.tables import Array, Source
from shiftscope.snapshot import Snapshot

__all__ = ["gradient_reason", "lost", "unless_lost"]

_STREAMS = {"grad_z": "∇z", "grad_a": "∇a"}


def lost(source: Source, stream: str) -> int:
    """Values of a stream that were NaN or infinite; 0 where only a frame is known."""
    if not isinstance(source, Snapshot):
        return 0
    streams = [record.streams.get(stream) for record in source.records.values()]
    counts = [s.counts for s in streams if s is not None and s.counts is not None]
    return int(sum(as_float(count.nonfinite).sum() for count in counts))


def unless_lost(source: Source, stream: str, reason: str) -> str:
    """The reason, unless values were there and were not finite.

    Args:
        source: A snapshot, or a frame.
        stream: ``"z"``, ``"a"``, ``"grad_z"`` or ``"grad_a"``.
        reason: What to say otherwise.
    """
    count = lost(source, stream)
    values = f"{count:,} value{'s' if count != 1 else ''} of {_STREAMS.get(stream, stream)}"
    return f"{values} were NaN or infinite" if count else reason


def gradient_reason(source: Source, variances: Array) -> str:
    """Why no gradient can be drawn: not finite, zero, or never there.

    Args:
        source: A snapshot, or a frame.
        variances: The variances of the gradient that are in it.
    """
    reason = "no gradient reached these sites (give a loss to measure it)"
    if (variances == 0).any():
        reason = "every gradient here is zero or below the resolution of floats"
    return unless_lost(source, "grad_z", reason)
