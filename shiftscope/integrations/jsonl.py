"""One line of strict JSON a window: easy to tail, to grep and to read back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from shiftscope.errors import UsageError
from shiftscope.files import strict_json
from shiftscope.integrations.sink import headline
from shiftscope.snapshot import Snapshot

__all__ = ["JsonLines"]


class JsonLines:
    """Append each window to a file as one line: step, phase, headline numbers, site rows.

    Every line is flushed, so that a job that is killed loses nothing that it wrote. Lines of an
    earlier job stay, as they do in a resumed run.

    Args:
        path: The file; its folder is made.

    Raises:
        UsageError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise UsageError(
                f"cannot write {str(path)!r}: {error.strerror or error}",
                "give a file in a folder you may write to",
            ) from error

    def write(self, step: int, phase: str, snapshot: Snapshot) -> None:
        """Append one line."""
        if self._file is None:
            raise UsageError(f"{str(self.path)!r} was closed", "make a new JsonLines to go on")
        line = {
            "step": step,
            "phase": phase,
            **headline(snapshot),
            "gaps": [list(gap) for gap in snapshot.gaps],
            "sites": snapshot.sites.to_dict("records"),
        }
        self._file.write(strict_json(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
