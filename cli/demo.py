"""``shiftscope demo``: the paper's main experiment in a minute, and a report on each network."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options, results
from .terminal import progress, say, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .demonstration import Outcome

__all__ = ["add_parser", "run"]

FOLDER = "demo-report"

DESCRIPTION = """\
Train a deep sigmoid network on scikit-learn's digits twice, with plain weights
and with weights whose rows sum to zero (Kutsuna, ECML PKDD 2019), save both
checkpoints and write a report on each. Takes about a minute on two cores and
needs scikit-learn."""


def add_parser(commands: Any) -> None:
    """Add the command to the grammar.

    Args:
        commands: What ``add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "demo",
        help="train a deep network twice, see why only one of them learns",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default=FOLDER,
        help=f"folder of checkpoints and reports (default: {FOLDER})",
    )
    parser.add_argument("--seed", metavar="N", type=options.seed, default=0, help="default: 0")
    parser.add_argument("--quick", action="store_true", help="a smaller network, a few seconds")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, report, compare.

    Args:
        arguments: The parsed command line.

    Returns:
        0.

    Raises:
        UsageError: scikit-learn is not installed, or the folder cannot be written.
    """
    results.check_place(arguments.out)
    with progress(arguments.quiet) as update, results.naming("--out"):
        from .demonstration import FULL, QUICK, demonstrate

        size = QUICK if arguments.quick else FULL
        outcomes = demonstrate(size, arguments.seed, Path(arguments.out), update)
    _tell(outcomes, Path(arguments.out))
    return 0


def _tell(outcomes: Sequence[Outcome], folder: Path) -> None:
    """The comparison, the verdicts, and where everything lies."""
    show(_table(outcomes))
    for outcome in outcomes:
        say("")
        say(f"{outcome.title}: {outcome.verdict}")
        say(f"  report      {folder / outcome.name / 'report.html'}")
        say(f"  checkpoint  {outcome.checkpoint}")
    say("")
    say("To analyse a checkpoint of your own, begin with what works for these:")
    first = shlex.quote(str(outcomes[0].checkpoint))
    say(f"  shiftscope analyze {first} --model mlp:sigmoid --data digits --dtype float64")


def _table(outcomes: Sequence[Outcome]) -> Any:
    """One row a network."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{outcomes[0].size}, digits it has not seen",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("network")
    for name in ("loss", "accuracy", "shift share", "decades of V(∇z) lost"):
        table.add_column(name, justify="right")
    for outcome in outcomes:
        table.add_row(outcome.title, *outcome.figures)
    return table
