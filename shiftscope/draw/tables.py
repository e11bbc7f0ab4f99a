"""From a snapshot or one of its frames to the arrays a drawing needs: selecting, not computing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from shiftscope.columns import quantile_names
from shiftscope.draw.names import display_names
from shiftscope.errors import UsageError
from shiftscope.snapshot import Snapshot

__all__ = [
    "Array",
    "Source",
    "by_site",
    "column",
    "neurons_of",
    "quantiles_of",
    "site_label",
    "sites_of",
]

Array = npt.NDArray[np.float64]

Source = Snapshot | pd.DataFrame
"""What a drawing accepts: a snapshot, or the one of its frames the drawing reads."""


def sites_of(source: Source) -> pd.DataFrame:
    """The site table, one row a site in the order of execution."""
    return _frame(source, "sites")


def neurons_of(source: Source, site: str | None = None) -> pd.DataFrame:
    """The neuron table, of one site where one is named.

    Args:
        source: A snapshot or a neuron table.
        site: The name of a site; None for all.

    Returns:
        The rows, in order.

    Raises:
        UsageError: There is no such site.
    """
    frame = _frame(source, "neurons")
    if site is None:
        return frame
    part = frame[frame["site"] == site]
    if part.empty:
        raise _unknown(site, list(dict.fromkeys(frame["site"])))
    return part


def site_label(source: Source, site: str, length: int) -> str:
    """A name as it stands in a figure, short and yet told from the others of its source.

    Args:
        source: A snapshot, a site table or a neuron table.
        site: One of its sites.
        length: Room in average characters.
    """
    frame = source.sites if isinstance(source, Snapshot) else source
    names = list(dict.fromkeys([*map(str, frame["site"]), site]))
    return display_names(names, length)[names.index(site)]


def column(frame: pd.DataFrame, name: str) -> Array:
    """A numeric column as float64; NaN where it is missing or infinite, which no axis can show."""
    if name not in frame.columns:
        return np.full(len(frame), np.nan)
    values = pd.to_numeric(frame[name], errors="coerce")
    numbers = np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.where(np.isfinite(numbers), numbers, np.nan)


def quantiles_of(frame: pd.DataFrame, stream: str) -> Array:
    """Quantiles 1, 25, 50, 75 and 99 % of a stream, one row each: ``[5, rows]``."""
    return np.stack([column(frame, name) for name in quantile_names(stream)])


def by_site(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Cut a neuron table into its sites, in the order in which they first appear."""
    if frame.empty:
        return
    for name, part in frame.groupby("site", sort=False):
        yield str(name), part


def _frame(source: Source, table: str) -> pd.DataFrame:
    frame: Any = getattr(source, table) if isinstance(source, Snapshot) else source
    if not isinstance(frame, pd.DataFrame) or "site" not in frame.columns:
        raise UsageError(
            f"expected a Snapshot or its {table} frame, got {type(source).__name__}"
            f"{'' if not isinstance(frame, pd.DataFrame) else ' without a column site'}",
            f"pass the snapshot, or snapshot.{table}",
        )
    return frame


def _unknown(site: str, known: list[str]) -> UsageError:
    few = ", ".join(map(repr, known[:5])) + (", ..." if len(known) > 5 else "")
    return UsageError(f"no site {site!r} here", f"choose one of its {len(known)} sites: {few}")
