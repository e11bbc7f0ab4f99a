"""What a sink is: a place that takes the windows of a watched run as they end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from shiftscope.errors import UsageError
from shiftscope.findings.headline import headline
from shiftscope.snapshot import Snapshot
from shiftscope.trace import Window

__all__ = ["CURVES", "Outlet", "Sink", "feed", "headline", "required", "scalars", "site_curves"]

CURVES = (
    *("shift_share", "within_var", "between_var", "z_mean", "z_std", "log10_grad_z_var"),
    *("eta_measured", "xi_measured", "phi_fw", "phi_bw", "dead", "saturated", "nonfinite"),
)
"""Columns of the site table that become one curve a site."""


@runtime_checkable
class Sink(Protocol):
    """Takes finished windows, in the order of steps."""

    def write(self, step: int, phase: str, snapshot: Snapshot) -> None:
        """Take one window.

        Args:
            step: Updates done when the window ended.
            phase: ``"train"``, ``"eval"``, ... as the run names it.
            snapshot: What was measured in it.
        """

    def close(self) -> None:
        """Write what is left and let go of files; idempotent."""


class Outlet:
    """Hands each window of a growing trace to sinks, once.

    Args:
        sinks: Where to write.
    """

    def __init__(self, *sinks: Sink) -> None:
        self.sinks = sinks
        self._written: dict[str, int] = {}

    def drain(self, trace: Iterable[Window]) -> None:
        """Write the windows that ended since the last call.

        Args:
            trace: The trace of a probe, or its windows.
        """
        for window in trace:
            if window.last > self._written.get(window.phase, -1):
                self._written[window.phase] = window.last
                for sink in self.sinks:
                    sink.write(window.last, window.phase, window.snapshot)

    def close(self, trace: Iterable[Window] = ()) -> None:
        """Write what is left and close the sinks.

        Args:
            trace: The trace, where windows may have ended since the last :meth:`drain`.
        """
        try:
            self.drain(trace)
        finally:
            for sink in self.sinks:
                sink.close()


def feed(trace: Iterable[Window], *sinks: Sink) -> None:
    """Write a finished trace to sinks and close them.

    Args:
        trace: A trace, or some of its windows.
        sinks: Where to write.
    """
    Outlet(*sinks).close(trace)


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
