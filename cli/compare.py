"""``shiftscope compare``: what changed between two measurements, and whether it got worse."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftscope.errors import UsageError

from . import inputs, options, results
from .terminal import progress, say, show

if TYPE_CHECKING:
    from shiftscope.snapshot import Snapshot
    from shiftscope.trace import Trace

__all__ = ["add_parser", "run"]

EPILOG = f"""\
A and B are snapshots or traces (the last window of training counts), as analyze
and save() write them; or checkpoints, which are measured if --model and --data
say how, and whose weights alone are compared otherwise.

{inputs.EPILOG}
Exit code 1 with --fail-on if a finding at or above LEVEL is new, or graver than
before: a gate for continuous integration.
"""

_ROWS = 40


def add_parser(commands: Any) -> None:
    """Add the command to the grammar.

    Args:
        commands: What ``add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "compare",
        help="compare two snapshots, or two checkpoints",
        description="Compare two measurements site by site and finding by finding.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", metavar="A", help="a snapshot or trace (.npz), or a checkpoint")
    parser.add_argument("after", metavar="B", help="likewise")
    inputs.sources(parser.add_argument_group("model and data, for checkpoints"))
    inputs.measuring(parser.add_argument_group("measuring, for checkpoints"))
    group = parser.add_argument_group("results")
    group.add_argument("--out", metavar="DIR", help="also write page, document and figure")
    group.add_argument(
        "--format",
        metavar="LIST",
        type=options.formats,
        default=options.FORMATS,
        help=f"what to write there, of {','.join(options.FORMATS)} (default: all)",
    )
    group.add_argument(
        "--fail-on",
        metavar="LEVEL",
        choices=options.SEVERITIES,
        help=f"exit with 1 if something got worse: {', '.join(options.SEVERITIES)}",
    )
    group.add_argument("--json", action="store_true", help="print JSON instead of a table")
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load or measure both, compare, tell.

    Args:
        arguments: The parsed command line.

    Returns:
        The exit code: 1 where something at or above ``--fail-on`` got worse.

    Raises:
        ShiftscopeError: Something given cannot be used.
    """
    import shiftscope

    if arguments.out is not None:
        results.check_place(arguments.out)
    with progress(arguments.quiet) as update:
        both = [_snapshot(path, arguments, update) for path in (arguments.before, arguments.after)]
        comparison = shiftscope.compare(*both)
        if arguments.out is not None:
            update("writing the report", 0, 0)
            _write(comparison, arguments)
    _tell(comparison, arguments)
    return int(arguments.fail_on is not None and bool(comparison.worse(arguments.fail_on)))


def _snapshot(
    path: str, arguments: argparse.Namespace, update: Callable[[str, int, int], None]
) -> Snapshot | Trace:
    """What was saved, or the measurement of a checkpoint."""
    import shiftscope

    if Path(path).suffix == ".npz" or (arguments.data is None and not Path(path).exists()):
        saved: Snapshot | Trace = shiftscope.load(path)
        return saved
    if arguments.data is None and arguments.model is not None:
        raise UsageError(
            "--model needs --data: there is nothing to run through the model",
            "name the data, e.g. --data test.npz",
        )
    from .measuring import measure

    return measure(argparse.Namespace(**{**vars(arguments), "checkpoint": path}), update)


def _write(comparison: Any, arguments: argparse.Namespace) -> None:
    """Page, document and figure; the drawing libraries are loaded here and not before."""
    from shiftscope.reporting.comparison import write_comparison

    with results.naming("--out"):
        write_comparison(comparison, arguments.out, arguments.format)


def _tell(comparison: Any, arguments: argparse.Namespace) -> None:
    from shiftscope.reporting.comparison import comparison_document
    from shiftscope.reporting.comparison_rows import comparison_sentence, comparison_table
    from shiftscope.reporting.words import number

    if arguments.json:
        from .terminal import say_json

        say_json(comparison_document(comparison))
        return
    show(comparison_table(comparison, rows=_ROWS))
    for name, (before, after) in comparison.scores.items():
        say(f"{name}: {number(before)} → {number(after)}")
    for finding in comparison.worse("info"):
        say(f"worse: {finding.severity}: {finding.title}")
    say(comparison_sentence(comparison))
    if arguments.out is not None:
        say(f"report: {arguments.out}")
