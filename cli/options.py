"""Arguments that several commands share, and the checks of their values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from shiftscope.errors import UsageError

__all__ = [
    "FORMATS",
    "SEVERITIES",
    "Parser",
    "count",
    "formats",
    "output",
    "positive",
    "seed",
    "severity_rank",
]

FORMATS = ("html", "json", "png")
SEVERITIES = ("info", "watch", "serious", "critical")


class Parser(argparse.ArgumentParser):
    """argparse's parser, with its errors raised as ours: one line why, one line what to do."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UsageError(message, f"see {self.prog} --help")


def count(least: int) -> Callable[[str], int]:
    """A type for whole numbers.

    Args:
        least: The smallest value that can be meant.

    Returns:
        A function for argparse's ``type``.
    """

    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} on, got {text!r}"
            )
        return value

    return whole_number


def seed(text: str) -> int:
    """A type for seeds, which torch's generators hold in 63 bits.

    Args:
        text: Such as ``0``.

    Returns:
        The seed.
    """
    value = count(0)(text)
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a number below 2**63, got {text!r:.60}")
    return value


def positive(text: str) -> float:
    """A type for finite numbers above zero.

    Args:
        text: Such as ``0.1`` or ``1e-3``.

    Returns:
        The number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def formats(text: str) -> tuple[str, ...]:
    """A type for comma-separated report formats.

    Args:
        text: Such as ``html,json``.

    Returns:
        The formats, each once, in the given order.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        wrong = ", ".join(unknown) or "nothing"
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(FORMATS)}, got {wrong}")
    return names


def output(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add ``--out``, ``--format``, ``--fail-on`` and ``--quiet``: what is made of a snapshot.

    Args:
        parser: The command's parser.
        default: The folder of the report; None where the command decides.
    """
    group = parser.add_argument_group("results")
    where = default or "shiftscope-report"
    group.add_argument(
        "--out", metavar="DIR", default=where, help=f"folder of the report (default: {where})"
    )
    group.add_argument(
        "--format",
        metavar="LIST",
        type=formats,
        default=FORMATS,
        help=f"what to write, of {','.join(FORMATS)} (default: all)",
    )
    group.add_argument(
        "--fail-on",
        metavar="LEVEL",
        choices=SEVERITIES,
        help=f"exit with 1 if a finding is at or above LEVEL: {', '.join(SEVERITIES)}",
    )
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")


def severity_rank(name: str) -> int:
    """How grave a severity is.

    Args:
        name: One of `SEVERITIES`.

    Returns:
        Its place, 0 for the mildest.
    """
    return SEVERITIES.index(name)
