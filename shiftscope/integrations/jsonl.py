"""One line of strict JSON a window: easy to tail, to grep and to read back."""

from __future__ import annotations

import os
from typing import IO

from shiftscope.files import strict_json, unwritable
from shiftscope.integrations.places import FILE_REMEDY, file_path
from shiftscope.integrations.sink import first_step, headline
from shiftscope.snapshot import Snapshot

__all__ = ["JsonLines"]

_NUMBERS = (
    *("loss", "accuracy", "shift_share_max", "shift_share_mean"),
    *("gradient_decay_decades", "nonfinite"),
)
"""Headline numbers; each stands in every line, ``null`` where it is not known."""


class JsonLines:
    """Append each window to a file as one line: steps, phase, headline numbers, site rows.

    ``step`` and ``step_last`` are the first and the last step of the window; a number that is not
    known is ``null``. Every line is flushed, so that a job that is killed loses nothing that it
    wrote. Lines of an earlier job stay, as they do in a resumed run; so do those of an earlier run
    of the same callback.

    Args:
        path: The file; its folder is made.

    Raises:
        UsageError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = file_path(path)
        self._file: IO[str] | None = None
        try:
            self._opened().close()
        except OSError as error:
            raise unwritable(self.path, error, FILE_REMEDY) from error

    def write(self, step: int, phase: str, snapshot: Snapshot) -> None:
        """Append one line."""
        line = {
            "step": first_step(step, snapshot),
            "step_last": step,
            "phase": phase,
            **dict.fromkeys(_NUMBERS),
            **headline(snapshot),
            "gaps": [list(gap) for gap in snapshot.gaps],
            "sites": snapshot.sites.to_dict("records"),
        }
        try:
            self._append(strict_json(line) + "\n")
        except OSError as error:
            raise unwritable(self.path, error, FILE_REMEDY) from error

    def close(self) -> None:
        """Close the file; the next window opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _append(self, line: str) -> None:
        if self._file is None:
            line = f"\n{line}" if self._is_torn() else line
            self._file = self._opened()
        self._file.write(line)
        self._file.flush()

    def _opened(self) -> IO[str]:
        return self.path.open("a", encoding="utf-8", newline="\n")

    def _is_torn(self) -> bool:
        """Whether the last line has no end: a job was killed, or the disk was full."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"
