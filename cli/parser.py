"""The whole grammar of the command line; importing it costs no more than argparse does."""

from __future__ import annotations

import argparse

from shiftscope import __version__

from . import analyze, compare, demo, fix, report, verify
from .options import Parser

__all__ = ["build_parser"]

COMMANDS = (analyze, fix, compare, report, verify, demo)
"""In the order of the help text; each module has ``add_parser`` and ``run``."""

DESCRIPTION = """\
Which layer trains badly, why, what to do, and what it would gain:
activation shift and variance diagnostics for PyTorch."""

EPILOG = """\
exit codes:
  0    done
  1    done, with a finding at or above --fail-on
  2    bad input: one line why, one line what to do
  70   a defect of shiftscope
  130  interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of ``shiftscope`` with all its commands.

    Returns:
        A parser whose result carries the command's ``run`` function.
    """
    parser = Parser(
        prog="shiftscope",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shiftscope {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
