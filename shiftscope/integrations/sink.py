"""What a sink is: a place that takes the windows of a watched run as they end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from shiftscope.errors import ShiftscopeError, UsageError
from shiftscope.findings.headline import headline
from shiftscope.given import each, shown
from shiftscope.snapshot import Snapshot
from shiftscope.trace import Window

__all__ = [
    "CURVES",
    "Outlet",
    "Sink",
    "checked",
    "feed",
    "first_step",
    "headline",
    "reason_of",
    "required",
    "scalars",
    "site_curves",
]

CURVES = (
    *("shift_share", "within_var", "between_var", "z_mean", "z_std", "log10_grad_z_var"),
    *("eta_measured", "xi_measured", "phi_fw", "phi_bw", "dead", "saturated", "nonfinite"),
)
"""Columns of the site table that become one curve a site."""


@runtime_checkable
class Sink(Protocol):
    """Takes finished windows, in the order of steps.

    A closed sink may be written again: the windows are those of a next run, and nothing of the
    runs before is lost.
    """

    def write(self, step: int, phase: str, snapshot: Snapshot) -> None:
        """Take one window.

        Args:
            step: Updates done when the window ended.
            phase: ``"train"``, ``"eval"``, ... as the run names it.
            snapshot: What was measured in it; its manifest tells the first step as
                ``"step_first"``, where that is another.
        """

    def close(self) -> None:
        """Write what is left and let go of files; idempotent."""


class Outlet:
    """Hands each window of a growing trace to sinks, once.

    It is called in the middle of training and never ends it: a sink that fails is told of by one
    RuntimeWarning and closed; the others go on.

    Args:
        sinks: Where to write.

    Raises:
        UsageError: One of them is no sink.
    """

    def __init__(self, *sinks: Sink) -> None:
        self.sinks = checked(sinks)
        self._going = list(self.sinks)
        self._written: dict[str, int] = {}

    def drain(self, trace: Iterable[Window]) -> None:
        """Write the windows that ended since the last call.

        Args:
            trace: The trace of a probe, or its windows.

        Raises:
            UsageError: It is none.
        """
        for window in each("trace", trace, Window):
            if window.last > self._written.get(window.phase, -1):
                self._written[window.phase] = window.last
                self._hand_out(window)

    def close(self, trace: Iterable[Window] = ()) -> None:
        """Write what is left and close the sinks.

        Args:
            trace: The trace, where windows may have ended since the last :meth:`drain`.
        """
        try:
            self.drain(trace)
        finally:
            failed = [(sink, error) for sink in self._going if (error := _tried(sink.close))]
            for sink, error in failed:
                _warn(sink, "could not be closed, what it holds may not be written", error)

    def _hand_out(self, window: Window) -> None:
        snapshot = _with_range(window)
        for sink in list(self._going):
            error = _tried(sink.write, window.last, window.phase, snapshot)
            if error is not None:
                self._going.remove(sink)
                _tried(sink.close)
                _warn(sink, f"failed at step {window.last} and takes no more windows", error)


def checked(sinks: Any) -> tuple[Sink, ...]:
    """The sinks, each of which can be written to.

    Args:
        sinks: What was given as sinks.

    Raises:
        UsageError: It is no collection of sinks.
    """
    if isinstance(sinks, Sink) or not isinstance(sinks, Iterable):
        raise UsageError(
            f"sinks must be a list, got {shown(sinks)}", 'e.g. sinks=[JsonLines("a.jsonl")]'
        )
    found = tuple(sinks)
    for sink in found:
        if isinstance(sink, type) or not isinstance(sink, Sink):
            raise UsageError(
                f"a sink has the methods write and close, got {shown(sink)}",
                'give one that is made, such as JsonLines("run.jsonl")',
            )
    return found


def feed(trace: Iterable[Window], *sinks: Sink) -> None:
    """Write a finished trace to sinks and close them; what fails is raised.

    Args:
        trace: A trace, or some of its windows.
        sinks: Where to write.

    Raises:
        UsageError: One of them is no sink, or cannot be written; or it is no trace.
    """
    places, windows = checked(sinks), each("trace", trace, Window)
    with ExitStack() as stack:
        for sink in places:
            stack.callback(sink.close)
        for window in windows:
            for sink in places:
                sink.write(window.last, window.phase, _with_range(window))


def first_step(step: int, snapshot: Snapshot) -> int:
    """Number of the first step of a window.

    Args:
        step: That of its last.
        snapshot: The window.
    """
    return min(step, int(snapshot.manifest.get("step_first", step)))


def site_curves(snapshot: Snapshot) -> dict[str, dict[str, float]]:
    """The curves of every site.

    Args:
        snapshot: The window.

    Returns:
        Site to column to finite number, in order of execution.
    """
    rows = snapshot.sites.to_dict("records")
    return {
        str(row["site"]): {name: float(row[name]) for name in CURVES if _finite(row.get(name))}
        for row in rows
    }


def scalars(phase: str, snapshot: Snapshot) -> dict[str, float]:
    """A window as flat scalars, named as loggers group them: ``train/shift_share/layer1.0``.

    Args:
        phase: The phase of the window.
        snapshot: The window.

    Returns:
        Tag to finite number.
    """
    flat = {f"{phase}/{name}": value for name, value in headline(snapshot).items()}
    for site, curves in site_curves(snapshot).items():
        flat |= {f"{phase}/{name}/{site}": value for name, value in curves.items()}
    return flat


def required(package: str, extra: str, what: str) -> Any:
    """Import an optional package.

    Args:
        package: Its import name.
        extra: The extra of this project that brings it.
        what: What it is needed for, at the start of a sentence.

    Returns:
        The module.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{what} needs the package {str(error.name)!r}, which is not installed",
            f'python -m pip install "shiftscope[{extra}]"',
        ) from error


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def reason_of(error: Exception) -> str:
    """What went wrong, on one line, for a warning.

    Args:
        error: What was raised.
    """
    if isinstance(error, ShiftscopeError):
        return error.reason
    return " ".join(f"{type(error).__name__}: {error}".split())


def _with_range(window: Window) -> Snapshot:
    """The snapshot of a window; its manifest says which steps it spans."""
    snapshot = window.snapshot
    if first_step(window.last, snapshot) == window.first:
        return snapshot
    span = {"step_first": window.first, "step": window.last}
    return replace(snapshot, manifest={**snapshot.manifest, **span})


def _tried(action: Callable[..., None], *arguments: Any) -> Exception | None:
    """Run it; what it raised."""
    try:
        action(*arguments)
    except Exception as error:  # whatever a sink raises, it is not to end training
        return error
    return None


def _warn(sink: Sink, what: str, error: Exception) -> None:
    text = f"the sink {type(sink).__name__} {what}: {reason_of(error)}"
    warnings.warn(text, RuntimeWarning, stacklevel=4)
