"""The site tables of all windows as one long table: CSV or Parquet, through pandas."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from shiftscope.errors import UsageError
from shiftscope.files import atomic_file
from shiftscope.integrations.places import FILE_REMEDY, check_file
from shiftscope.integrations.sink import first_step, required
from shiftscope.reporting.words import printable
from shiftscope.snapshot import Snapshot

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Csv", "Parquet"]

_SPAN = ("step", "step_last", "phase")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters by which a spreadsheet takes a text for a formula, of full width as well."""


class Csv:
    r"""Collect the windows and write one row a site and window; whole or not at all.

    ``step`` and ``step_last`` are the first and the last step of the window, as in ``trace.sites``.
    A sink that is written again after it was closed goes on with a next run: its rows follow those
    of the runs before. Names are made harmless for spreadsheets: what is invisible is written as an
    escape (``\x00``), and before a first ``=``, ``+``, ``-`` or ``@`` stands an apostrophe.

    Args:
        path: The file to write when the sink is closed; its folder is made.

    Raises:
        UsageError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_file(path)
        self._parts: list[pd.DataFrame] = []
        self._saved = 0

    def write(self, step: int, phase: str, snapshot: Snapshot) -> None:
        """Keep one window."""
        first = first_step(step, snapshot)
        self._parts.append(snapshot.sites.assign(step=first, step_last=step, phase=phase))

    def close(self) -> None:
        """Write the file, if a window came."""
        if len(self._parts) == self._saved:
            return
        content = self._encoded(_long(self._parts))
        try:
            with atomic_file(self.path) as file:
                file.write(content)
        except UsageError as error:
            raise UsageError(error.reason, FILE_REMEDY) from error
        self._saved = len(self._parts)

    def _encoded(self, table: pd.DataFrame) -> bytes:
        texts = table.select_dtypes(exclude="number").columns
        plain = table.assign(**{name: table[name].map(_inert) for name in texts})
        return plain.to_csv(index=False, lineterminator="\n").encode()


class Parquet(Csv):
    """As :class:`Csv`, in the Parquet format: column types and names are kept as they are.

    Args:
        path: The file to write when the sink is closed; its folder is made.

    Raises:
        UsageError: The package pyarrow is not installed, or the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        required("pyarrow", "parquet", "Parquet")
        super().__init__(path)

    def _encoded(self, table: pd.DataFrame) -> bytes:
        return table.to_parquet(None, index=False, engine="pyarrow")


def _inert(cell: Any) -> Any:
    """A text that no spreadsheet runs and no terminal obeys."""
    if not isinstance(cell, str):
        return cell
    shown = printable(cell)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def _long(parts: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    # Columns that a window has no value for are all NaN there; dropping them first keeps the types
    # of the others, and reindexing brings every column back in its place.
    columns = [*_SPAN, *(name for name in parts[0] if name not in _SPAN)]
    table = pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)
    return table.reindex(columns=columns)
