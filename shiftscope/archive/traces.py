"""A trace as the bytes of its file: the file of each snapshot as one array, and a manifest."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from shiftscope.archive.container import manifest_array, manifest_of, opened
from shiftscope.archive.snapshots import dump, parse
from shiftscope.trace import Trace, Window

__all__ = ["dump_trace", "parse_trace"]

_VERSION = 1


def dump_trace(trace: Trace) -> bytes:
    """A trace as the bytes of its file.

    Args:
        trace: What to serialise.
    """
    arrays: dict[str, Any] = {
        f"window_{k}": np.frombuffer(dump(window.snapshot), dtype=np.uint8)
        for k, window in enumerate(trace.windows)
    }
    manifest = {
        "format": "shiftscope-trace",
        "schema_version": _VERSION,
        "limit": trace.limit,
        "steps_done": trace.steps_done,
        "missed": trace.missed,
        "windows": [[w.first, w.last, w.phase] for w in trace.windows],
    }
    buffer = io.BytesIO()
    np.savez(buffer, manifest=manifest_array(manifest), **arrays)
    return buffer.getvalue()


def parse_trace(content: bytes, name: str, remedy: str) -> Trace:
    """The inverse of :func:`dump_trace`; nothing in the bytes is executed.

    Args:
        content: The bytes of the file of a trace.
        name: What to call the file in an error.
        remedy: What to do where it is none.

    Returns:
        The trace.

    Raises:
        LoadError: The bytes are damaged, of another kind or of a newer version.
    """
    with opened(content, f"{name!r} is not a readable shiftscope trace", remedy) as archive:
        manifest = manifest_of(archive, "trace", _VERSION, name)
        made = Trace(limit=max(4, int(manifest["limit"])))
        made.steps_done = int(manifest.get("steps_done", 0))
        missed = manifest.get("missed", {})
        made.missed = {str(k): (str(why), str(then)) for k, (why, then) in missed.items()}
        for k, (first, last, phase) in enumerate(manifest["windows"]):
            snapshot = parse(bytes(archive[f"window_{k}"]), name)
            made.windows.append(Window(int(first), int(last), str(phase), snapshot))
        return made
