"""From a snapshot to files, to lines on stdout and to the exit code; shared by the commands."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shiftscope.errors import UsageError

from .options import severity_rank
from .terminal import say, show

if TYPE_CHECKING:
    from shiftscope.findings import Finding
    from shiftscope.snapshot import Snapshot
    from shiftscope.trace import Trace

__all__ = ["check_place", "naming", "tell", "write"]


def check_place(out: str, option: str = "--out", what: str = "the report") -> None:
    """Refuse a folder that cannot be written before anything is measured.

    Args:
        out: The folder; it need not exist yet.
        option: The option that names it.
        what: What is to be written there.

    Raises:
        UsageError: A file is in the way, or a parent folder may not be written.
    """
    remedy = f"give another folder by {option}"
    if not out or "\0" in out:
        raise UsageError(f"{out!r} is no name of a folder", remedy)
    place = Path(out).absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UsageError(f"cannot write {what} to {out!r}: {str(place)!r} is no folder", remedy)
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {what} to {out!r}: {str(place)!r} is read-only", remedy)


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Name the option that gave a place, where it turns out that it cannot be written.

    Args:
        option: Such as ``--out``.

    Raises:
        UsageError: The place cannot be written.
    """
    from shiftscope.files import PlaceError

    try:
        yield
    except PlaceError as error:
        raise UsageError(error.reason, f"{error.remedy}, by {option}") from error


def write(
    measured: Snapshot | Trace,
    arguments: argparse.Namespace,
    update: Callable[[str, int, int], None],
) -> Sequence[Finding]:
    """Diagnose, and write the report.

    Args:
        measured: A snapshot, or the trace of a run.
        arguments: The parsed command line with ``out`` and ``format``.
        update: Told the stages.

    Returns:
        The findings, worst first.
    """
    import shiftscope

    update("diagnosing", 0, 0)
    findings: Sequence[Finding] = shiftscope.diagnose(measured)
    update("writing the report", 0, 0)
    with naming("--out"):
        shiftscope.report(measured, arguments.out, formats=arguments.format, findings=findings)
    return findings


def tell(
    measured: Snapshot | Trace, findings: Sequence[Finding], arguments: argparse.Namespace
) -> int:
    """Print the summary and where the files are.

    Args:
        measured: A snapshot, or the trace of a run, of which the last window is told.
        findings: What :func:`write` returned.
        arguments: The parsed command line with ``out`` and ``fail_on``.

    Returns:
        The exit code: 1 where a finding is at or above ``--fail-on``.
    """
    from shiftscope.reporting.text import summary
    from shiftscope.snapshot import Snapshot

    show(summary(measured if isinstance(measured, Snapshot) else measured.last, findings))
    for name in ("report.html", "report.json", "snapshot.npz", "trace.npz", "figures"):
        path = Path(arguments.out, name)
        if path.exists():
            say(f"{name:13} {path}")
    return int(_alarming(findings, arguments.fail_on))


def _alarming(findings: Sequence[Finding], level: str | None) -> bool:
    """Whether a finding is at or above the level the user asked to fail on."""
    if level is None:
        return False
    return any(severity_rank(f.severity) >= severity_rank(level) for f in findings)
