"""A run as arrays: one row a site in the order of execution, one column a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shiftscope.draw.names import strided, thinned
from shiftscope.draw.tables import Array, column
from shiftscope.errors import UsageError
from shiftscope.findings.timeline import main_phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from shiftscope.snapshot import Snapshot
    from shiftscope.trace import Trace

__all__ = ["Course", "label_steps"]

_WINDOWS = 360
"""Windows drawn at most: one a pixel column of a small panel."""


@dataclass(frozen=True)
class Course:
    """The windows of a run that a figure shows.

    Attributes:
        steps: Step of each window.
        snapshots: What was measured in each.
    """

    steps: tuple[int, ...]
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
            UsageError: There is no finished window of that phase.
        """
        windows = list(trace.windows)
        chosen = main_phase(windows) if phase is None else [w for w in windows if w.phase == phase]
        if not chosen:
            known = ", ".join(dict.fromkeys(w.phase for w in windows)) or "none"
            asked = "" if phase is None else f" of phase {phase!r}"
            raise UsageError(
                f"the trace has no finished window{asked}",
                f"phases of this trace: {known}; windows are finished by the steps of the loop",
            )
        kept = [chosen[place] for place in thinned(len(chosen), _WINDOWS)]
        return cls(tuple(w.first for w in kept), tuple(w.snapshot for w in kept))

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

    def manifest(self, name: str) -> Array:
        """A number of the manifests, ``[windows]``; NaN where it is missing."""
        told = [snapshot.manifest.get(name) for snapshot in self.snapshots]
        return np.array([np.nan if v is None else float(v) for v in told], dtype=np.float64)


def label_steps(ax: Axes, steps: Sequence[int], limit: int = 8) -> None:
    """Name the windows along the x axis by their steps, evenly spaced ones where they are many.

    Args:
        ax: Axes whose x runs over the positions 0, 1, ... of the windows.
        steps: Step of each window.
        limit: How many are named at most.
    """
    places = strided(len(steps), limit)
    ax.set_xticks(places, [f"{steps[place]}" for place in places])
    ax.set_xlabel("step")
