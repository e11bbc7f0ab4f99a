"""Where NaN or infinity first appeared in a run, and what stood before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shiftscope.columns import as_float
from shiftscope.findings.finding import short

if TYPE_CHECKING:
    from shiftscope.record import SiteRecord, Stream
    from shiftscope.snapshot import Snapshot
    from shiftscope.trace import Window

__all__ = ["Origin", "StreamFacts", "find_origin"]

_BEFORE = 5
_FORWARD = ("a", "z")
_BACKWARD = ("grad_a", "grad_z")


@dataclass(frozen=True)
class StreamFacts:
    """One stream of one site in a few numbers, finite values only.

    Attributes:
        site: The site.
        stream: ``"a"``, ``"z"``, ``"grad_z"`` or ``"grad_a"``.
        step: Step of the window.
        mean: Mean over neurons of their means.
        std: Root of the mean variance of the neurons.
        largest: Largest absolute value seen; NaN where extremes are not kept (gradients).
        nonfinite: Values that are NaN or infinite.
    """

    site: str
    stream: str
    step: int
    mean: float
    std: float
    largest: float
    nonfinite: int

    def text(self) -> str:
        """The facts as people read them."""
        size = f", largest |value| {self.largest:.3g}" if np.isfinite(self.largest) else ""
        lost = f", {self.nonfinite} not finite" if self.nonfinite else ""
        return (
            f"{short(self.site)} {self.stream} at step {self.step}: mean {self.mean:.3g}, "
            f"sd {self.std:.3g}{size}{lost}"
        )


@dataclass(frozen=True)
class Origin:
    """The first value of a run that was not finite.

    Attributes:
        step: The first recorded step with such a value.
        recorded_before: The recorded step before it; None where it was the first one.
        phase: Phase of the window.
        site: The first site, in the order in which values are computed: forward streams in the
            order of execution, then gradients in the opposite order.
        stream: Its stream.
        values: How many values of that stream were not finite.
        inherited: Whether the values came in with the input of the first site.
        before: The streams computed just before it in the same window, the nearest first.
        history: The same stream in the windows before, the latest first.
    """

    step: int
    recorded_before: int | None
    phase: str
    site: str
    stream: str
    values: int
    inherited: bool
    before: tuple[StreamFacts, ...]
    history: tuple[StreamFacts, ...]


def find_origin(windows: Iterable[Window]) -> Origin | None:
    """Find the first value that is not finite.

    Args:
        windows: The windows of a run, in the order of steps.

    Returns:
        Where it appeared, with what stood before it; None where all values are finite.
    """
    earlier: list[Window] = []
    for window in windows:
        places = _places(window.snapshot)
        lost = [
            (_since(record, name, window), index)
            for index, (record, name) in enumerate(places)
            if _lost(record.streams[name])
        ]
        if lost:
            return _origin(window, places, min(lost), earlier)
        earlier.append(window)
    return None


def _origin(
    window: Window,
    places: Sequence[tuple[SiteRecord, str]],
    first: tuple[int, int],
    earlier: Sequence[Window],
) -> Origin:
    step, index = first
    record, name = places[index]
    return Origin(
        step=step,
        recorded_before=_recorded_before(step, window, earlier),
        phase=window.phase,
        site=record.info.site,
        stream=name,
        values=_lost(record.streams[name]),
        inherited=name == "a" and index == 0,
        before=_before(places[:index], window.first),
        history=_history(earlier, record.info.site, name),
    )


def _since(record: SiteRecord, name: str, window: Window) -> int:
    """The step in which a stream lost its first value."""
    return record.lost_since.get(name, window.first)


def _recorded_before(step: int, window: Window, earlier: Sequence[Window]) -> int | None:
    """The last step before this one of which the numbers are known."""
    if step > window.first:
        every = window.snapshot.manifest.get("schedule", {}).get("every")
        return max(window.first, step - int(every or 1))
    same = [w.last for w in earlier if w.phase == window.phase]
    return max(same, default=None)


def _places(snapshot: Snapshot) -> list[tuple[SiteRecord, str]]:
    """Every stream in the order in which its values are computed."""
    records = sorted(snapshot.records.values(), key=lambda record: record.info.order)
    # The output of an activation is its own second stream; the input of a linear map its first.
    forward = [(r, n) for r in records for n in _order(r, _FORWARD) if n in r.streams]
    backward = [
        (r, n) for r in reversed(records) for n in _order(r, _BACKWARD)[::-1] if n in r.streams
    ]
    return forward + backward


def _order(record: SiteRecord, names: tuple[str, str]) -> tuple[str, str]:
    """A linear map reads a and makes z; an activation reads z and makes a."""
    return names if record.info.kind == "linear" else (names[1], names[0])


def _before(places: Sequence[tuple[SiteRecord, str]], step: int) -> tuple[StreamFacts, ...]:
    return tuple(_facts(record, name, step) for record, name in reversed(places[-_BEFORE:]))


def _history(earlier: Sequence[Window], site: str, name: str) -> tuple[StreamFacts, ...]:
    found = []
    for window in reversed(earlier):
        record = window.snapshot.records.get(site)
        if record is not None and name in record.streams:
            found.append(_facts(record, name, window.first))
        if len(found) == _BEFORE:
            break
    return tuple(found)


def _facts(record: SiteRecord, name: str, step: int) -> StreamFacts:
    stream = record.streams[name]
    means, variances = as_float(stream.moments.mean), as_float(stream.moments.variance)
    seen = np.isfinite(means) & np.isfinite(variances) & (as_float(stream.moments.count) > 0)
    some = bool(seen.any())
    return StreamFacts(
        site=record.info.site,
        stream=name,
        step=step,
        mean=float(means[seen].mean()) if some else float("nan"),
        std=float(np.sqrt(variances[seen].mean())) if some else float("nan"),
        largest=_largest(stream),
        nonfinite=_lost(stream),
    )


def _largest(stream: Stream) -> float:
    if stream.extrema is None:
        return float("nan")
    ends = np.abs(np.concatenate([as_float(stream.extrema.low), as_float(stream.extrema.high)]))
    known = ends[np.isfinite(ends)]
    return float(known.max()) if known.size else float("nan")


def _lost(stream: Stream) -> int:
    return int(as_float(stream.counts.nonfinite).sum()) if stream.counts is not None else 0
