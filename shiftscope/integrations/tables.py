"""The site tables of all windows as one long table: CSV or Parquet, through pandas."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shiftscope.files import atomic_file
from shiftscope.integrations.sink import required
from shiftscope.snapshot import Snapshot

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Csv", "Parquet"]


class Csv:
    """Collect the windows and write one row a site and window; whole or not at all.

    Args:
        path: The file to write when the sink is closed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._parts: list[pd.DataFrame] = []

    def write(self, step: int, phase: str, snapshot: Snapshot) -> None:
        """Keep one window."""
        self._parts.append(snapshot.sites.assign(step=step, phase=phase))

    def close(self) -> None:
        """Write the file, if a window came."""
        if not self._parts:
            return
        table, self._parts = _long(self._parts), []
        with atomic_file(self.path) as file:
            file.write(self._encoded(table))

    def _encoded(self, table: pd.DataFrame) -> bytes:
        return table.to_csv(index=False, lineterminator="\n").encode()


class Parquet(Csv):
    """As :class:`Csv`, in the Parquet format, column types kept.

    Args:
        path: The file to write when the sink is closed.

    Raises:
        UsageError: The package pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        required("pyarrow", "parquet", "Parquet")
        super().__init__(path)

    def _encoded(self, table: pd.DataFrame) -> bytes:
        return table.to_parquet(None, index=False, engine="pyarrow")


def _long(parts: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    # Columns that a window has no value for are all NaN there; dropping them first keeps the types
    # of the others, and reindexing brings every column back in its place.
    columns = ["step", "phase", *(name for name in parts[0] if name not in ("step", "phase"))]
    table = pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)
    return table.reindex(columns=columns)
