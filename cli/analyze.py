"""``shiftscope analyze``: from a saved checkpoint to a verdict."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from shiftscope.errors import UsageError

from . import options, ranks, results
from .terminal import progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from shiftscope.snapshot import Snapshot

__all__ = ["add_parser", "run"]

EPILOG = """\
specs:
  --model      package.module:factory | file.py:factory | torchvision:NAME |
               timm:NAME | transformers:DIR | mlp:ACTIVATION[@PART] (widths read
               from the weights); not needed for an exported FILE.pt2
  --data       digits | mnist:DIR | cifar10:DIR | cifar100:DIR | images:DIR |
               sprite:FILE:HxW[:CLASSES] | FILE.npz | FILE.safetensors |
               package.module:loader | file.py:loader | normal:3x32x32 (synthetic)
  --loss       cross_entropy | nll | mse | bce | none | package.module:function |
               file.py:function
  --normalize  imagenet | cifar10 | cifar100 | mnist | half | none | MEAN/STD

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
    _add_inputs(parser.add_argument_group("model and data"))
    _add_measuring(parser.add_argument_group("measuring"))
    options.output(parser)
    parser.set_defaults(run=run)


def _add_inputs(group: Any) -> None:
    group.add_argument("--model", metavar="SPEC", help="what to load the weights into")
    group.add_argument("--data", metavar="SPEC", help="what to run through the model")
    group.add_argument("--loss", metavar="SPEC", help="none: forward only (default: by the labels)")
    group.add_argument(
        "--normalize", metavar="SPEC", help="MEAN/STD such as 0.5/0.5, a preset, or none"
    )
    group.add_argument(
        "--state", metavar="NAME", help="which weights, where CHECKPOINT holds several (e.g. ema)"
    )
    group.add_argument(
        "--trust-pickle",
        action="store_true",
        help="run the code inside CHECKPOINT; only for files you wrote yourself",
    )


def _add_measuring(group: Any) -> None:
    whole = options.count(1)
    group.add_argument(
        "--batches", metavar="N", type=whole, help="at most N batches (default: all)"
    )
    group.add_argument("--batch-size", metavar="N", type=whole, default=256, help="default: 256")
    group.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:1")
    group.add_argument("--dtype", choices=("float32", "float64"), help="measure in this precision")
    group.add_argument("--seed", metavar="N", type=options.count(0), default=0, help="default: 0")


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
