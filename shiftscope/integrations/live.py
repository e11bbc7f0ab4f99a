"""A table in the terminal that changes while the network trains."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shiftscope.findings.finding import short
from shiftscope.given import whole
from shiftscope.integrations.sink import headline
from shiftscope.reporting.words import printable
from shiftscope.snapshot import Snapshot

__all__ = ["LiveTable"]

_COLUMNS = (
    ("shift_share", "shift", "{:.3f}"),
    ("z_mean", "mean z", "{:+.2f}"),
    ("z_std", "sd z", "{:.2g}"),
    ("log10_grad_z_var", "log V(∇z)", "{:.1f}"),
    ("dead", "dead", "{:.0%}"),
    ("nonfinite", "NaN", "{:.0f}"),
)
_WORST = 12


class LiveTable:
    """Show the worst sites of the last window, updated in place; plain lines where no terminal is.

    Args:
        sites: How many sites to show.
        console: Where to print; None takes stderr, so that results on stdout stay clean.

    Raises:
        UsageError: The number of sites is none.
    """

    def __init__(self, sites: int = _WORST, console: Console | None = None) -> None:
        self.sites = whole("sites", sites, 1, "leave it out to show the worst dozen")
        self.console = Console(stderr=True) if console is None else console
        self._live: Live | None = None

    def write(self, step: int, phase: str, snapshot: Snapshot) -> None:
        """Show one window."""
        if not self.console.is_terminal:
            self.console.print(_line(step, phase, snapshot), soft_wrap=True)
            return
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        told = Group(_line(step, phase, snapshot), self._table(snapshot))
        self._live.update(told, refresh=True)

    def close(self) -> None:
        """Leave the last table on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self, snapshot: Snapshot) -> Table:
        table = Table(expand=False)
        table.add_column("site", overflow="fold")
        for _, heading, _ in _COLUMNS:
            table.add_column(heading, justify="right")
        frame = snapshot.sites.sort_values("shift_share", ascending=False, na_position="last")
        for row in frame.head(self.sites).to_dict("records"):
            # A name from a model is data: as Text it is never read as markup.
            cells = [_cell(row.get(name), form) for name, _, form in _COLUMNS]
            table.add_row(Text(printable(short(row["site"]))), *cells)
        return table


def _line(step: int, phase: str, snapshot: Snapshot) -> Text:
    told = headline(snapshot)
    words = [f"step {step}", phase]
    words += [f"{name.replace('_', ' ')} {value:.3g}" for name, value in told.items()]
    return Text(printable(" · ".join(words)))


def _cell(value: Any, form: str) -> str:
    known = isinstance(value, int | float) and value == value
    return form.format(value) if known else "–"
