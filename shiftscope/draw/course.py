"""A run as arrays: one row a site in the order of execution, one column a window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.collections import PolyCollection
from matplotlib.ticker import FixedLocator, MaxNLocator

from shiftscope.draw.marks import BAD, HATCH, hatch_stretches, stretches
from shiftscope.draw.names import thinned
from shiftscope.draw.reasons import lost
from shiftscope.draw.tables import Array, column
from shiftscope.errors import UsageError
from shiftscope.findings.timeline import main_phase
from shiftscope.given import expect
from shiftscope.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from shiftscope.snapshot import Snapshot

__all__ = ["Course", "shade_cells", "shade_windows", "step_axis"]

_WINDOWS = 360
"""Windows drawn at most: one a pixel column of a small panel."""

_SEEN = 0.01
"""Least width of the last window, as a share of the run."""


@dataclass(frozen=True)
class Course:
    """The windows of a run that a figure shows.

    Attributes:
        steps: First step of each window.
        lasts: Last step of each window.
        snapshots: What was measured in each.
    """

    steps: tuple[int, ...]
    lasts: tuple[int, ...]
    snapshots: tuple[Snapshot, ...]

    @classmethod
    def of(cls, trace: Trace, phase: str | None = None) -> Course:
        """Choose the windows of one phase; of very many, evenly spaced ones.

        Args:
            trace: The run.
            phase: Which phase; None for training, or the first one where there is no training.

        Returns:
            The windows, in the order of steps.

        Raises:
            UsageError: It is no trace, or has no finished window of that phase.
        """
        expect("the run", trace, Trace)
        windows = list(trace.windows)
        chosen = main_phase(windows) if phase is None else [w for w in windows if w.phase == phase]
        if not chosen:
            raise _no_window(trace, phase)
        chosen = sorted(chosen, key=lambda window: window.first)
        kept = [chosen[place] for place in thinned(len(chosen), _WINDOWS)]
        return cls(
            tuple(w.first for w in kept),
            tuple(w.last for w in kept),
            tuple(w.snapshot for w in kept),
        )

    @cached_property
    def edges(self) -> Array:
        """Where each window is drawn: from its first step to the next one's, ``[windows + 1]``.

        A step lies in the middle of its column. The last window ends behind its last step as the
        others do, is no wider than the narrowest of them, and wide enough to be seen.
        """
        starts = np.asarray(self.steps, dtype=np.float64) - 0.5
        lasts = np.asarray(self.lasts, dtype=np.float64) + 0.5
        widths, behind = np.diff(starts), starts[1:] - lasts[:-1]
        end = starts[-1] + 1.0
        if (widths > 0).any():
            narrow, usual = widths[widths > 0].min(), max(0.0, float(np.median(behind)))
            seen = starts[-1] + _SEEN * (starts[-1] - starts[0])
            end = max(seen, min(starts[-1] + narrow, lasts[-1] + usual))
        edges: Array = np.append(starts, max(end, lasts[-1]))
        return edges

    @cached_property
    def middles(self) -> Array:
        """The middle of the steps of each window."""
        ends = np.asarray([self.steps, self.lasts], dtype=np.float64)
        return np.asarray(ends.mean(axis=0))

    @cached_property
    def bad(self) -> npt.NDArray[np.bool_]:
        """Which sites had values that were not finite in which windows, ``[sites, windows]``."""
        return self.matrix("nonfinite", self.sites()) > 0

    def bad_at(self, sites: Sequence[str]) -> npt.NDArray[np.bool_]:
        """The rows of :attr:`bad` that belong to these sites, ``[sites, windows]``."""
        places = {name: place for place, name in enumerate(self.sites())}
        return self.bad[np.array([places[site] for site in sites], dtype=np.int64)]

    def sites(self, kind: str | None = None) -> list[str]:
        """Names of the sites of a kind, in the order of execution."""
        order: dict[str, int] = {}
        for snapshot in self.snapshots:
            for name, record in snapshot.records.items():
                if kind in (None, record.info.kind):
                    order.setdefault(name, record.info.order)
        return sorted(order, key=lambda name: order[name])

    def judged(self) -> list[str]:
        """Where shift counts: sites that enter nonlinearities; linear ones where there are none."""
        return self.sites("activation") or self.sites("linear")

    def matrix(self, name: str, sites: Sequence[str]) -> Array:
        """A column of the site tables, ``[sites, windows]``; NaN where it was not measured."""
        place = {site: index for index, site in enumerate(sites)}
        out = np.full((len(sites), len(self.snapshots)), np.nan)
        for k, snapshot in enumerate(self.snapshots):
            frame = snapshot.sites
            for site, value in zip(frame["site"], column(frame, name), strict=True):
                if site in place:
                    out[place[site], k] = value
        return out

    def missing(self, name: str) -> str:
        """Why no window has a number: its values were not finite, or were not there."""
        if any(lost(snapshot, "grad_z" if "grad" in name else "z") for snapshot in self.snapshots):
            return f"no window has a finite {name}: there were NaN or infinite values"
        return f"no window has {name}"

    def manifest(self, name: str) -> Array:
        """A number of the manifests, ``[windows]``; NaN where it is missing."""
        told = [snapshot.manifest.get(name) for snapshot in self.snapshots]
        return np.array([np.nan if v is None else float(v) for v in told], dtype=np.float64)


def step_axis(ax: Axes, course: Course, beside: Course | None = None, ticks: int = 10) -> None:
    """Make the x axis one of steps: from the first window's start to the last one's end.

    Args:
        ax: Axes whose x is the number of a step.
        course: The windows.
        beside: Windows of another phase that are seen, too.
        ticks: How many steps are named at most.
    """
    low, high = course.edges[0], course.edges[-1]
    if beside is not None:
        low, high = min(low, beside.steps[0] - 0.5), max(high, beside.lasts[-1] + 0.5)
    ax.set_xlim(low, high)
    whole = range(math.ceil(low), math.floor(high) + 1)
    few = len(whole) <= ticks  # of so few the locator would name fractions
    ax.xaxis.set_major_locator(FixedLocator(whole) if few else MaxNLocator(ticks, integer=True))
    ax.set_xlabel("step")


def shade_windows(
    ax: Axes, course: Course, beside: Course | None = None, label: str | None = BAD
) -> None:
    """Hatch the windows in which any value was not finite, over the whole height of a panel.

    Args:
        ax: Axes whose x is the number of a step.
        course: The windows.
        beside: Windows of another phase; of these their own steps are hatched.
        label: Words for the legend; None for none.
    """
    bad = np.asarray(course.bad.any(axis=0))
    hatch_stretches(ax, course.edges, bad, label)
    if beside is None:
        return
    label = None if bad.any() else label
    for k in np.flatnonzero(beside.bad.any(axis=0)):
        ends = np.array([beside.steps[k] - 0.5, beside.lasts[k] + 0.5])
        hatch_stretches(ax, ends, np.array([True]), label)
        label = None


def shade_cells(ax: Axes, course: Course, sites: Sequence[str]) -> None:
    """Hatch the cells of a map of sites and steps where any value was not finite.

    Args:
        ax: Axes whose x is the number of a step, and whose y the position of a site.
        course: The windows.
        sites: The sites, one a row.
    """
    cells = [
        [(left, row - 0.5), (right, row - 0.5), (right, row + 0.5), (left, row + 0.5)]
        for row, line in enumerate(course.bad_at(sites))
        for left, right in (course.edges[list(ends)] for ends in stretches(line))
    ]
    if cells:
        patch = PolyCollection(cells, facecolors="none", label=BAD, zorder=3, **HATCH)
        ax.add_collection(patch, autolim=False)


def _no_window(trace: Trace, phase: str | None) -> UsageError:
    known = ", ".join(dict.fromkeys(w.phase for w in trace)) or "none"
    asked = "" if phase is None else f" of phase {phase!r}"
    missed = trace.why_empty if phase is None else trace.missed.get(phase)
    if missed is not None:
        return UsageError(f"the trace has no finished window{asked}: {missed[0]}", missed[1])
    return UsageError(
        f"the trace has no finished window{asked}",
        f"phases of this trace: {known}; windows are finished by the steps of the loop",
    )
