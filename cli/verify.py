"""``shiftscope verify``: the propositions of the paper, put to the test on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import options, results
from .terminal import progress, say, say_json, show

if TYPE_CHECKING:
    from rich.table import Table

    from shiftscope.theory import Verification

__all__ = ["add_parser", "run"]

SAMPLES = 100_000
_MOST = 99
"""Propositions a range may name: what is beyond is a slip of the finger."""
EPILOG = """\
Each claim is compared with a Monte Carlo estimate under its assumptions, and so
are negative controls, which must fail, and the paper's errata, as printed and
corrected. Exit code 1 if anything does not come out as it should.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the grammar.

    Args:
        commands: What ``add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "verify",
        help="test the paper's propositions by simulation",
        description="Test Propositions 1 to 6 of Kutsuna (2019) by simulation.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--propositions",
        metavar="LIST",
        type=propositions,
        default=tuple(range(1, 7)),
        help="such as 1-6, 2,4 or the name of a claim (default: 1-6)",
    )
    parser.add_argument(
        "--samples",
        metavar="N",
        type=rows,
        default=SAMPLES,
        help=f"rows drawn for each case (default: {SAMPLES})",
    )
    parser.add_argument("--seed", metavar="N", type=options.count(0), default=0, help="default: 0")
    parser.add_argument(
        "--device", metavar="NAME", default="cpu", help="cpu (default), cuda, cuda:1"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", metavar="DIR", help="also write a report into this folder")
    parser.add_argument(
        "--format",
        metavar="LIST",
        type=options.formats,
        default=options.FORMATS,
        help=f"what to write there, of {','.join(options.FORMATS)} (default: all)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run)


def propositions(text: str) -> tuple[int | str, ...]:
    """A type for lists of propositions.

    Args:
        text: Such as ``1-6``, ``2,4`` or ``prop3``.

    Returns:
        Numbers and names of claims, in the given order.
    """
    chosen: list[int | str] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        low, dash, high = item.partition("-")
        if low.isdecimal() and (not dash or high.isdecimal()):
            if int(high or low) - int(low) > _MOST:
                raise argparse.ArgumentTypeError(f"expected a list such as 1-6, got {text!r:.60}")
            chosen += range(int(low), int(high or low) + 1)
        else:
            chosen.append(item)
    if not chosen:
        raise argparse.ArgumentTypeError(f"expected a list such as 1-6 or 2,4, got {text!r}")
    return tuple(chosen)


def rows(text: str) -> int:
    """A type for numbers of rows, from 1000 on.

    Args:
        text: Such as ``200000`` or ``1e8``.

    Returns:
        The number.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1000 <= value <= 1e15 or value != int(value):
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 1000 on, such as 200000 or 1e8, got {text!r}"
        )
    return int(value)


def run(arguments: argparse.Namespace) -> int:
    """Simulate and compare.

    Args:
        arguments: The parsed command line.

    Returns:
        0 if everything came out as expected, else 1.
    """
    import shiftscope

    if arguments.out is not None:
        results.check_place(arguments.out)
    with progress(arguments.quiet) as update:
        outcomes: Sequence[Verification] = shiftscope.verify(
            arguments.propositions,
            arguments.samples,
            arguments.seed,
            device=arguments.device,
            progress=lambda done, total, label: update("simulating", done, total),
        )
        if arguments.out is not None:
            update("writing the report", 0, 0)
            _write(outcomes, arguments)
    failed = [outcome for outcome in outcomes if not outcome.passed]
    if arguments.json:
        say_json([outcome.to_row() for outcome in outcomes])
        return int(bool(failed))
    show(_table(outcomes))
    expected = len(outcomes) - len(failed)
    if arguments.out is not None:
        say(f"report: {arguments.out}")
    say(f"{expected} of {len(outcomes)} cases came out as expected (seed {arguments.seed})")
    return int(bool(failed))


def _write(outcomes: Sequence[Verification], arguments: argparse.Namespace) -> None:
    """Page, document and figures; the drawing libraries are loaded here and not before."""
    from shiftscope.reporting.verification import write_verification

    with results.naming("--out"):
        write_verification(outcomes, arguments.out, arguments.format)


def _table(outcomes: Sequence[Verification]) -> Table:
    """One row a case; the number shown is that of its largest deviation."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("claim", "case", "kind", "of"):
        table.add_column(title)
    for title in ("predicted", "estimate", "± s.e.", "z"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for o in outcomes:
        words = (o.claim, o.case, o.kind, o.quantity)
        numbers = (o.predicted, o.estimate, o.standard_error, o.z)
        verdict = o.verdict if o.passed else f"{o.verdict}, expected: {o.expected}"
        style = "green" if o.passed else "bold red"
        table.add_row(*words, *(f"{n:.4g}" for n in numbers), Text(verdict, style=style))
    return table
