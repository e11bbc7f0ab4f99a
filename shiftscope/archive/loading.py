"""Reading a saved file, whatever it holds."""

from __future__ import annotations

import os

from shiftscope.archive.container import holds_trace
from shiftscope.archive.snapshots import read_snapshot
from shiftscope.snapshot import Snapshot
from shiftscope.trace import Trace

__all__ = ["load"]


def load(path: str | os.PathLike[str]) -> Snapshot | Trace:
    """Read a snapshot or a trace that its ``save`` wrote.

    Args:
        path: The ``.npz`` file.

    Returns:
        The snapshot (or trace); its tables equal those of the one that was saved.

    Raises:
        LoadError: The file is missing, damaged, of another kind or of a newer version.
    """
    return Trace.load(path) if holds_trace(path) else read_snapshot(path)
