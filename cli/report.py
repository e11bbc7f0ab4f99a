"""``shiftscope report``: everything again from a saved snapshot, with no model."""

from __future__ import annotations

import argparse
from typing import Any

from . import options, results
from .terminal import progress

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command to the grammar.

    Args:
        commands: What ``add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "report",
        help="write the report again from a saved snapshot",
        description="Rebuild a report from snapshot.npz or trace.npz, without model and data.",
    )
    parser.add_argument("snapshot", metavar="SNAPSHOT", help="snapshot.npz or trace.npz of a run")
    options.output(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load, diagnose, write.

    Args:
        arguments: The parsed command line.

    Returns:
        The exit code.
    """
    import shiftscope

    results.check_place(arguments.out)
    with progress(arguments.quiet) as update:
        measured = shiftscope.load(arguments.snapshot)
        findings = results.write(measured, arguments, update)
    return results.tell(measured, findings, arguments)
