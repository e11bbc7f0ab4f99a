"""Snapshots and traces as files: written whole, read without running anything, vetted."""

from shiftscope.archive.container import content_of, holds_trace
from shiftscope.archive.loading import load
from shiftscope.archive.snapshots import dump, parse, read_snapshot, write_snapshot
from shiftscope.archive.traces import dump_trace, parse_trace

__all__ = [
    "content_of",
    "dump",
    "dump_trace",
    "holds_trace",
    "load",
    "parse",
    "parse_trace",
    "read_snapshot",
    "write_snapshot",
]
