"""``shiftscope analyze``: from a saved checkpoint to a verdict."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shiftscope.errors import UsageError

from . import options, results
from .terminal import note, progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from shiftscope.io import Checkpoint
    from shiftscope.snapshot import Snapshot

__all__ = ["add_parser", "run"]

EPILOG = """\
specs:
  --model  package.module:factory | file.py:factory | mlp:ACTIVATION | torchvision:NAME |
           timm:NAME | transformers:DIR; not needed for an exported .pt2
  --data   digits | mnist:DIR | cifar10:DIR | cifar100:DIR | images:DIR | FILE.npz |
           FILE.safetensors | package.module:loader | normal:3x32x32 (synthetic)
  --loss   cross_entropy | mse | ... | package.module:function

Without --model: what the weights alone can tell.
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
    group.add_argument("--loss", metavar="SPEC", help="what to differentiate; none: forward only")
    group.add_argument(
        "--normalize", metavar="MEAN/STD", help="scale the inputs, as in 0.5/0.5 or a name"
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
    group.add_argument("--batch-size", metavar="N", type=whole, default=128, help="default: 128")
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
    with progress(arguments.quiet) as update:
        snapshot = _measure(arguments, update)
        findings = results.write(snapshot, arguments, update)
    return results.tell(snapshot, findings, arguments)


def _check_combination(arguments: argparse.Namespace) -> None:
    """Refuse options that ask for what cannot be measured."""
    needs_model = not arguments.checkpoint.endswith(".pt2")
    if arguments.model is None and arguments.data is not None and needs_model:
        raise UsageError(
            "--data needs --model: weights alone cannot be run",
            "name the model, e.g. --model net.py:build or --model mlp:sigmoid",
        )
    if arguments.model is not None and arguments.data is None:
        raise UsageError(
            "--model needs --data: there is nothing to run through the model",
            "name the data, e.g. --data test.npz, or --data normal:3x32x32 for synthetic inputs",
        )
    if arguments.loss is not None and arguments.data is None:
        raise UsageError(
            "--loss needs --model and --data: there are no outputs to compare",
            "name both, or leave --loss out to see what the weights alone can tell",
        )


def _measure(arguments: argparse.Namespace, update: Callable[[str, int, int], None]) -> Snapshot:
    """Weights alone, or the model run on the data."""
    from shiftscope.io import load_checkpoint

    update("reading the checkpoint", 0, 0)
    checkpoint = load_checkpoint(
        arguments.checkpoint, trust_pickle=arguments.trust_pickle, prefer=arguments.state
    )
    for line in checkpoint.notes:
        note(f"{arguments.checkpoint}: {line}")
    if arguments.data is None:
        from shiftscope.capture import weights_only

        return _signed(weights_only(checkpoint.state), arguments, checkpoint)
    return _signed(_run_model(arguments, checkpoint, update), arguments, checkpoint)


def _run_model(
    arguments: argparse.Namespace,
    checkpoint: Checkpoint,
    update: Callable[[str, int, int], None],
) -> Snapshot:
    """The model on the data, batch by batch."""
    import shiftscope
    from shiftscope.io import load_data, load_loss, load_model

    update("building the model", 0, 0)
    model = load_model(arguments.model, checkpoint)
    update("reading the data", 0, 0)
    data = load_data(
        arguments.data,
        batch_size=arguments.batch_size,
        batches=arguments.batches,
        seed=arguments.seed,
        normalize=arguments.normalize,
    )
    snapshot: Snapshot = shiftscope.analyze(
        model.module,
        data,
        load_loss(arguments.loss) if arguments.loss else None,
        batches=arguments.batches,
        dtype=arguments.dtype,
        device=arguments.device,
        seed=arguments.seed,
        progress=lambda done, total: update("measuring", done, total or 0),
    )
    return snapshot


def _signed(snapshot: Snapshot, arguments: argparse.Namespace, checkpoint: Checkpoint) -> Snapshot:
    """The snapshot with what was asked for in its manifest."""
    asked = {
        "checkpoint": str(checkpoint.path),
        "wrapping": checkpoint.wrapping,
        "model": arguments.model,
        "data": arguments.data,
        "loss": arguments.loss,
    }
    return replace(snapshot, manifest={**snapshot.manifest, **asked})
