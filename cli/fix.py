"""``shiftscope fix``: from a checkpoint to a fixed one, with the effect predicted and proved."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftscope.errors import UsageError

from . import inputs, options, results
from .terminal import progress

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["add_parser", "run"]

METHODS = (
    *("lcw", "lcw-projection", "lcw-data", "cwn", "weight_norm", "spectral_norm", "gmp"),
    *("standardize", "absorb-bias", "rescale"),
)
EPILOG = f"""\
{inputs.EPILOG}
The result is a plain state dict (safetensors if FILE ends so): constraints are
baked in, names are those of the model. To train under a constraint, put it on
again: ss.constrain(model, "lcw"). Without --method: the best fix for what is
found. --dry-run lists the fixes and their predicted effect.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the grammar.

    Args:
        commands: What ``add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "fix",
        help="write a fixed checkpoint, with the effect predicted and measured",
        description="Fix the weights of a checkpoint and measure what it did.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file or folder of weights")
    inputs.sources(parser.add_argument_group("model and data"))
    _add_fix(parser.add_argument_group("fix"))
    inputs.measuring(parser.add_argument_group("measuring"))
    group = parser.add_argument_group("results")
    group.add_argument("--out", metavar="FILE", help="the fixed weights: .pt, .pth, .safetensors")
    group.add_argument("--report", metavar="DIR", help="folder for a before/after report")
    group.add_argument(
        "--format",
        metavar="LIST",
        type=options.formats,
        default=options.FORMATS,
        help=f"what to write there, of {','.join(options.FORMATS)} (default: all)",
    )
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run)


def _add_fix(group: Any) -> None:
    group.add_argument(
        "--method", metavar="NAME", choices=METHODS, help=f"one of {', '.join(METHODS)}"
    )
    group.add_argument(
        "--sites", metavar="PATTERN", default="*", help="layers to change (default: all)"
    )
    group.add_argument(
        "--rescale", action="store_true", help="then scale every layer to unit variance on data"
    )
    group.add_argument(
        "--mean-preserving",
        action="store_true",
        help="let biases keep every mean: for trained weights",
    )
    group.add_argument("--dry-run", action="store_true", help="predict only, write nothing")


def run(arguments: argparse.Namespace) -> int:
    """Load, measure, predict, apply, save, measure again, report.

    Args:
        arguments: The parsed command line.

    Returns:
        The exit code.

    Raises:
        ShiftscopeError: Something given cannot be used.
    """
    _check(arguments)
    with progress(arguments.quiet) as update:
        tell = _work(arguments, update)
    return tell()


def _work(
    arguments: argparse.Namespace, update: Callable[[str, int, int], None]
) -> Callable[[], int]:
    """Imported late: behind this door stands torch."""
    from .fixing import fix, rehearse

    return (rehearse if arguments.dry_run else fix)(arguments, update)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be meant before anything is read."""
    for name in ("data",) if arguments.checkpoint.endswith(".pt2") else ("model", "data"):
        if getattr(arguments, name) is None:
            raise UsageError(
                f"fix needs --{name}: a fix is measured before and after",
                "name it as for shiftscope analyze",
            )
    if arguments.method is None and (arguments.rescale or arguments.mean_preserving):
        raise UsageError(
            "--rescale and --mean-preserving belong to a --method", "name the method as well"
        )
    if not arguments.dry_run:
        _check_out(arguments)
    if arguments.report is not None:
        results.check_place(arguments.report, "--report")


def _check_out(arguments: argparse.Namespace) -> None:
    if not arguments.out:
        raise UsageError("fix needs --out FILE for the fixed weights", "or --dry-run to look first")
    from shiftscope.io.saving import check_suffix

    check_suffix(arguments.out)
    out = Path(arguments.out)
    if out.is_dir():
        raise UsageError(f"{arguments.out!r} is a folder", "name a file by --out")
    if out.exists() and Path(arguments.checkpoint).exists() and out.samefile(arguments.checkpoint):
        raise UsageError(
            "--out names the checkpoint itself, which is left as it is", "name another file"
        )
    results.check_place(str(out.parent), what="the weights")
