"""``shiftscope analyze``: from a saved checkpoint to a verdict."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from shiftscope.errors import UsageError

from . import inputs, options, ranks, results
from .terminal import progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from shiftscope.snapshot import Snapshot

__all__ = ["add_parser", "run"]

EPILOG = f"""\
{inputs.EPILOG}
Without --data: what the weights alone can tell. Under torchrun each process
measures its share of the data and the first one writes the report.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the grammar.

    Args:
        commands: What ``add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "analyze",
        help="measure a checkpoint and report what is wrong with it",
        description="Measure a saved checkpoint and write a report.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file or folder of weights")
    inputs.sources(parser.add_argument_group("model and data"))
    inputs.measuring(parser.add_argument_group("measuring"))
    options.output(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load, measure, report.

    Args:
        arguments: The parsed command line.

    Returns:
        The exit code.

    Raises:
        ShiftscopeError: Something given cannot be used.
    """
    _check_combination(arguments)
    results.check_place(arguments.out)
    with progress(arguments.quiet or not ranks.first()) as update:
        with ranks.joined():
            snapshot = _measure(arguments, update)
        if not ranks.first():
            return 0
        findings = results.write(snapshot, arguments, update)
    return results.tell(snapshot, findings, arguments)


def _measure(arguments: argparse.Namespace, update: Callable[[str, int, int], None]) -> Snapshot:
    """Imported late: behind this door stands torch."""
    from .measuring import measure

    return measure(arguments, update)


def _check_combination(arguments: argparse.Namespace) -> None:
    """Refuse options that ask for what cannot be measured."""
    if arguments.model is not None and arguments.data is None:
        raise UsageError(
            "--model needs --data: there is nothing to run through the model",
            "name the data, e.g. --data test.npz, or --data normal:3x32x32 for synthetic inputs",
        )
    if arguments.loss is not None and arguments.data is None:
        raise UsageError(
            "--loss needs --model and --data: without them there are no outputs to judge",
            "name both, or leave --loss out to see what the weights alone can tell",
        )
