"""Snapshots along training: the frozen numbers of one window after another.

A trace is what :func:`shiftscope.watch` and :func:`shiftscope.trial` leave behind. It is bounded in
memory: of all windows but the latest only what tables and figures need is kept, and when there are
too many, some are left out, evenly over the run. What remains are true measurements of their steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

from shiftscope.errors import UsageError
from shiftscope.files import atomic_file
from shiftscope.given import each, expect, whole
from shiftscope.record import SiteRecord, Stream
from shiftscope.snapshot import Snapshot

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Trace", "Window"]

_KEPT_ROWS = 20
"""Rows of z that older windows keep: one for each block of the jackknife of the shift share."""
LIMIT = 256
"""Windows a trace holds at most."""
_NO_STEP = (
    "no step was recorded yet",
    "train on, give every=N for a fixed schedule, or take probe.snapshot()",
)


@dataclass(frozen=True)
class Window:
    """One stretch of training and its numbers.

    Attributes:
        first: Number of the first recorded step (0 is the first step of training).
        last: Number of the last recorded step.
        phase: ``"train"`` or ``"eval"``.
        snapshot: The numbers.
    """

    first: int
    last: int
    phase: str
    snapshot: Snapshot

    @property
    def step(self) -> int:
        """Updates done when its last recorded step began."""
        return self.last


class Trace:
    """Windows in the order of training.

    Args:
        windows: The windows.
        limit: Windows to hold at most; beyond it some are left out, evenly over the run.

    Attributes:
        windows: The windows.
        steps_done: Steps that the run has made, recorded or not.
        missed: Phase to ``(reason, remedy)`` where of its latest recorded steps no site was kept.

    Raises:
        UsageError: The limit is below 4, or something else than windows is given.
    """

    def __init__(self, windows: Iterable[Window] = (), *, limit: int = LIMIT) -> None:
        self.limit = whole("limit", limit, 4, "give 4 or more")
        self.windows: list[Window] = []
        self.steps_done = 0
        self.missed: dict[str, tuple[str, str]] = {}
        for window in each("windows", windows, Window):
            self.append(window)

    @classmethod
    def of(cls, windows: Iterable[Window | Snapshot]) -> Trace:
        """A trace of given windows; snapshots are windows of one training step each.

        Args:
            windows: Windows, or snapshots: their step is that of their manifest, or they are
                numbered from 0.

        Raises:
            UsageError: Something else is given.
        """
        made = []
        for number, item in enumerate(each("windows", windows, Window, Snapshot)):
            if isinstance(item, Snapshot):
                step = int(item.manifest.get("step", number))
                item = Window(step, step, "train", item)
            made.append(item)
        return cls(made, limit=max(LIMIT, len(made)))

    def append(self, window: Window) -> None:
        """Add the next window; the one before of its phase is made small.

        Args:
            window: The window.

        Raises:
            UsageError: It is none.
        """
        expect("window", window, Window)
        for place in range(len(self.windows) - 1, -1, -1):
            if self.windows[place].phase == window.phase:
                self.windows[place] = _small(self.windows[place])
                break
        self.windows.append(window)
        if len(self.windows) > self.limit:
            self._thin()

    def _thin(self) -> None:
        """Leave out the window that is missed least: its neighbours lie closest to each other."""
        gaps: list[tuple[int, int]] = []
        of_phase: dict[str, list[int]] = {}
        for place, window in enumerate(self.windows):
            of_phase.setdefault(window.phase, []).append(place)
        for places in of_phase.values():
            for before, place, after in zip(places, places[1:], places[2:], strict=False):
                if not self._is_turn(before, place, after):
                    gap = self.windows[after].first - self.windows[before].first
                    gaps.append((gap, place))
        del self.windows[min(gaps)[1] if gaps else 1]

    def _is_turn(self, *places: int) -> bool:
        """Whether values cease to be finite, or become so, among these windows."""
        return len({_is_finite(self.windows[place].snapshot) for place in places}) > 1

    @property
    def steps(self) -> tuple[int, ...]:
        """Number of the first step of each window."""
        return tuple(window.first for window in self.windows)

    @property
    def last(self) -> Snapshot:
        """The latest snapshot of a training window (of any window, if none was of training).

        Raises:
            UsageError: The trace is empty.
        """
        for phase in ("train", None):
            for window in reversed(self.windows):
                if phase in (None, window.phase):
                    return window.snapshot
        reason, remedy = self.why_empty
        raise UsageError(f"the trace holds no window: {reason}", remedy)

    @property
    def why_empty(self) -> tuple[str, str]:
        """Why there is no window, and what to do."""
        return next(iter(self.missed.values()), _NO_STEP)

    def phase(self, name: str) -> Trace:
        """The windows of one phase.

        Args:
            name: ``"train"`` or ``"eval"``.
        """
        made = Trace(limit=self.limit)
        made.windows = [window for window in self.windows if window.phase == name]
        made.missed = {phase: why for phase, why in self.missed.items() if phase == name}
        return made

    def merge(self) -> Snapshot:
        """One snapshot of all training windows together (of all windows, if none was of training).

        Raises:
            UsageError: The trace is empty.
        """
        chosen = self.phase("train").windows or self.windows
        if not chosen:
            return self.last
        return reduce(Snapshot.join, [window.snapshot for window in chosen])

    @property
    def sites(self) -> pd.DataFrame:
        """One row a site and window: ``step``, ``step_last``, ``phase``, and the site columns."""
        return self._frame("sites")

    @property
    def neurons(self) -> pd.DataFrame:
        """One row a neuron and window: ``step``, ``step_last``, ``phase``, and its columns."""
        return self._frame("neurons")

    def _frame(self, name: str) -> pd.DataFrame:
        import pandas as pd

        parts = []
        for window in self.windows:
            table = getattr(window.snapshot, name).copy()
            table.insert(0, "step", window.first)
            table.insert(1, "step_last", window.last)
            table.insert(2, "phase", window.phase)
            parts.append(table.astype(object) if table.empty else table)
        filled = [part for part in parts if len(part)]
        return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=["step"])

    @property
    def next_step(self) -> int:
        """Number of the step after the last one."""
        recorded = max((window.last for window in self.windows), default=-1) + 1
        return max(recorded, self.steps_done)

    def rewind(self, step: int) -> None:
        """Forget the windows that reach a step or lie behind it: the run goes on from there.

        Args:
            step: Number of the step that is to be made next.
        """
        self.windows = [window for window in self.windows if window.last < step]
        self.steps_done = min(self.steps_done, step)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.npz`` file without pickles, whole or not at all.

        Args:
            path: The file to write.

        Raises:
            UsageError: The file cannot be written.
        """
        from shiftscope.archive import dump_trace

        content = dump_trace(self)
        with atomic_file(path) as file:
            file.write(content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace that :meth:`save` wrote; a training run goes on by ``resume=trace``.

        Args:
            path: The ``.npz`` file.

        Returns:
            The trace.

        Raises:
            LoadError: The file is missing, damaged, of another kind or of a newer version.
        """
        from shiftscope.archive import content_of

        return cls.parse(content_of(path, "give the path of a saved trace"), str(path))

    @classmethod
    def parse(
        cls, content: bytes, name: str, remedy: str = "give a file written by Trace.save"
    ) -> Trace:
        """The trace in the bytes of a file; nothing in them is executed.

        Args:
            content: The bytes.
            name: What to call the file in an error.
            remedy: What to do where it is none.

        Returns:
            The trace.

        Raises:
            LoadError: The bytes are damaged, of another kind or of a newer version.
        """
        from shiftscope.archive import parse_trace

        return parse_trace(content, name, remedy)

    def __iter__(self) -> Iterator[Window]:
        """The windows in order."""
        return iter(self.windows)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        """One window."""
        return self.windows[index]

    def __repr__(self) -> str:
        """How many windows, and of which steps."""
        if not self.windows:
            return f"Trace(empty: {self.why_empty[0]})" if self.missed else "Trace(empty)"
        last = max(window.last for window in self.windows)
        return f"Trace({len(self)} windows, steps {self.windows[0].first}-{last})"


def _is_finite(snapshot: Snapshot) -> bool:
    return not any(record.lost_since for record in snapshot.records.values())


def _small(window: Window) -> Window:
    """Quantiles instead of samples, but for the few rows the error of the shift share needs."""
    snapshot = window.snapshot
    kept = {name: dict(tables) for name, tables in snapshot.quantiles.items()}
    records = {name: _thinned(record) for name, record in snapshot.records.items()}
    return replace(
        window,
        snapshot=Snapshot(
            records,
            snapshot.gaps,
            snapshot.manifest,
            snapshot.coverage,
            snapshot.inputs,
            kept_quantiles=kept,
        ),
    )


def _thinned(record: SiteRecord) -> SiteRecord:
    return replace(record, streams={n: _few_rows(n, s) for n, s in record.streams.items()})


def _few_rows(name: str, stream: Stream) -> Stream:
    if stream.sample is None:
        return stream
    return replace(stream, sample=stream.sample.thin(_KEPT_ROWS) if name == "z" else None)
