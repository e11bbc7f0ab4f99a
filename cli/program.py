"""The outermost frame: arguments in, exit code out, and no traceback in between."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum

from shiftscope.errors import ShiftscopeError

from .parser import build_parser
from .terminal import complain, drop_stdout, survive_terminals

__all__ = ["Exit", "main"]


class Exit(IntEnum):
    """What the process returns."""

    DONE = 0
    FINDINGS = 1
    BAD_INPUT = 2
    DEFECT = 70
    INTERRUPTED = 130
    CLOSED_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments behind the program's name; those of the process by default.

    Returns:
        The exit code: 0 done, 1 findings at or above ``--fail-on``, 2 bad input, 70 a defect of
        shiftscope, 130 interrupted, 141 when nobody reads the results any more.
    """
    survive_terminals()
    try:
        return _finish(_dispatch(argv))
    except SystemExit as stop:  # argparse, behind --help and --version
        return _finish(int(stop.code or 0))
    except KeyboardInterrupt:
        complain("interrupted")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        drop_stdout()
        return Exit.CLOSED_PIPE
    except Exception as error:
        return _explain(error)


def _dispatch(argv: Sequence[str] | None) -> int:
    """Parse the arguments and run the command they name."""
    arguments = build_parser().parse_args(argv)
    return int(arguments.run(arguments))


def _finish(code: int) -> int:
    """Flush here, where a closed pipe can still be met quietly; the results keep their code."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
    return code


def _explain(error: Exception) -> int:
    """Say what went wrong in one line, and what to do in another."""
    if os.environ.get("SHIFTSCOPE_DEBUG"):
        traceback.print_exception(error)
    known = _as_known(error)
    if known is not None:
        complain(known.reason, known.remedy)
        return Exit.BAD_INPUT
    complain(
        f"unexpected {type(error).__name__}: {error}",
        "this is a defect of shiftscope; SHIFTSCOPE_DEBUG=1 shows the traceback to report",
    )
    return Exit.DEFECT


def _as_known(error: Exception) -> ShiftscopeError | None:
    """The error as something the user can act on, None where it is a defect."""
    if isinstance(error, ShiftscopeError):
        return error
    if _is_out_of_memory(error):
        return ShiftscopeError(
            f"out of memory: {error or 'no more of it'}",
            "give a smaller --batch-size or fewer --batches, or another --device",
        )
    if isinstance(error, OSError) and error.errno is not None:
        place = f": {error.filename}" if error.filename else ""
        return ShiftscopeError(
            f"{os.strerror(error.errno)}{place}",
            "check that the path exists, that you may use it, and that the disk is not full",
        )
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """By name and words: importing torch to compare classes would be dear."""
    words = ("can't allocate memory", "out of memory")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )
