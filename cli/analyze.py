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
    from shiftscope.trace import Trace

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
    group = parser.add_argument_group("measuring")
    inputs.measuring(group)
    _add_trial(group)
    options.output(parser)
    parser.set_defaults(run=run)


def _add_trial(group: Any) -> None:
    group.add_argument(
        "--trial",
        metavar="STEPS",
        type=options.count(1),
        help="train a copy for STEPS steps, watch each, and report the run (e.g. 20)",
    )
    group.add_argument(
        "--lr",
        metavar="RATE",
        type=options.positive,
        help="of the trial's SGD with momentum 0.9 (default: 0.1)",
    )


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
            measured = _measure(arguments, update)
        if not ranks.first():
            return 0
        findings = results.write(measured, arguments, update)
    return results.tell(measured, findings, arguments)


def _measure(
    arguments: argparse.Namespace, update: Callable[[str, int, int], None]
) -> Snapshot | Trace:
    """Imported late: behind this door stands torch."""
    from .measuring import attempt, measure

    return measure(arguments, update) if arguments.trial is None else attempt(arguments, update)


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
    if arguments.trial is not None and arguments.data is None:
        raise UsageError(
            "--trial needs --model and --data: there is nothing to train on",
            "name both, e.g. --model net.py:build --data train.npz",
        )
    if arguments.lr is not None and arguments.trial is None:
        raise UsageError("--lr is of a trial", "add --trial 20")
