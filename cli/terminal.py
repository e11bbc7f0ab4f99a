"""What is printed where: results on stdout, progress and messages on stderr.

Names and messages may come from a file somebody else wrote. They are printed as text on one line:
control characters appear as escapes, so that none reaches the terminal as a command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["complain", "drop_stdout", "note", "printable", "progress", "say", "say_json", "show"]

PIPE_WIDTH = 120
"""Columns of a table that is not read on a terminal."""


def printable(text: object) -> str:
    r"""The text on one line, with control characters as escapes (``\x1b``, ``\n``).

    Args:
        text: Anything with a string form.

    Returns:
        The line.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def complain(reason: str, remedy: str = "") -> None:
    """Print the two lines of an error on stderr.

    Args:
        reason: What is wrong.
        remedy: What to do about it.
    """
    lines = [f"shiftscope: {printable(reason)}"]
    if remedy:
        lines.append(f"  try: {printable(remedy)}")
    _to_stderr("\n".join(lines))


def note(message: str) -> None:
    """Print a message on stderr.

    Args:
        message: One line.
    """
    _to_stderr(printable(message))


def _to_stderr(text: str) -> None:
    with suppress(OSError):  # nobody can be told that nobody can be told
        print(text, file=sys.stderr)


def say(line: str) -> None:
    """Print one line of result on stdout; a reader that has gone away is no error.

    Args:
        line: One line.
    """
    try:
        print(printable(line))
    except BrokenPipeError:
        drop_stdout()


def say_json(value: Any) -> None:
    """Print strict JSON on stdout.

    Args:
        value: Plain values; NaN becomes null.
    """
    from shiftscope.files import strict_json

    try:
        print(strict_json(value, indent=2))
    except BrokenPipeError:
        drop_stdout()


def show(renderable: Any) -> None:
    """Print a rich renderable on stdout, without colours where nobody sees them.

    Args:
        renderable: A table, panel or text of rich.
    """
    from rich.console import Console

    class Results(Console):
        def on_broken_pipe(self) -> None:
            # rich would leave with exit code 1, which here means "there are findings"
            drop_stdout()

    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    try:
        Results(width=width, highlight=False).print(renderable)
    except BrokenPipeError:
        drop_stdout()


def drop_stdout() -> None:
    """Send further output nowhere, so that the interpreter's last flush cannot fail either."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 (a device, not a path)
        try:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        except (OSError, ValueError):  # a replaced stdout without a descriptor
            return


def survive_terminals() -> None:
    """Let a stream that cannot show Greek letters show question marks, a closed one take all."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 (a device, for the whole run)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        _replace_unknown(stream)


def _replace_unknown(stream: TextIO) -> None:
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
    if not encoding.startswith("utf") and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")


@contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Show how far a command has come: bars on a terminal, one line a stage elsewhere.

    Args:
        quiet: Show nothing.

    Yields:
        A function ``(stage, done, total)``; a total of 0 means unknown.
    """
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _bars() as update:
            yield update
    else:
        seen: set[str] = set()
        yield lambda stage, done, total: _announce(stage, seen)


def _announce(stage: str, seen: set[str]) -> None:
    if stage not in seen:
        seen.add(stage)
        note(f"{stage} …")


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """One bar a stage, drawn by rich on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for earlier in tasks.values():  # stages follow one another
                    bars.update(earlier, total=1, completed=1, count="done")
                    bars.stop_task(earlier)
                tasks[stage] = bars.add_task(stage, total=None, count="")
            count = f"{done}/{total}" if total else ""
            bars.update(tasks[stage], completed=done, total=total or None, count=count)

        yield update
