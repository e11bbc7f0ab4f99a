"""The summary for the terminal: verdict, findings, worst sites, coverage, gaps, inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from shiftscope.findings import Finding, verdict
from shiftscope.reporting.ranking import has_data, ranked
from shiftscope.reporting.words import (
    ascii_only,
    bounded_share,
    coverage_lines,
    input_lines,
    number,
    printable,
    score_line,
    shorten,
    shorten_all,
    subtitle,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

    from shiftscope.snapshot import Snapshot

__all__ = ["Summary", "plain_summary", "summary"]

_NAME = 12
"""Least width of a site name."""

_WORST = 10
_GAPS = 10
_Column: TypeAlias = "tuple[str, list[str]]"
"""Heading and cells."""

_STYLE = {"critical": "bold red", "serious": "red", "watch": "yellow", "info": "cyan"}
_COLUMNS = (
    ("shift_share", "shift"),
    ("z_mean", "mean z"),
    ("z_std", "sd z"),
    ("log10_grad_z_var", "lg V(∇z)"),
    ("dead", "dead"),
    ("saturated", "flat"),
)
_WEIGHT_COLUMNS = (
    ("neurons", "neurons"),
    ("fan_in", "fan in"),
    ("eta", "η"),
    ("xi", "ξ"),
    ("lcw_residual", "max |cos(w, 1)|"),
)
"""What is known of weights alone; used where no data went through."""


def summary(snapshot: Snapshot, findings: Sequence[Finding]) -> Summary:
    """Everything a terminal should say about a snapshot.

    Args:
        snapshot: What was measured.
        findings: What :func:`shiftscope.diagnose` concluded.

    Returns:
        A rich renderable. Names in it are inert: no markup, no control characters.
    """
    return Summary(snapshot, tuple(findings))


def plain_summary(snapshot: Snapshot, findings: Sequence[Finding], width: int = 80) -> str:
    """The same as plain text, without colours.

    Args:
        snapshot: What was measured.
        findings: What was concluded.
        width: Columns.

    Returns:
        Lines of text.
    """
    import io

    from rich.console import Console

    buffer = io.StringIO()
    console = Console(file=buffer, width=width, no_color=True, highlight=False, emoji=False)
    console.print(summary(snapshot, findings))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


@dataclass(frozen=True)
class Summary:
    """A rich renderable of a snapshot and its findings.

    Attributes:
        snapshot: What was measured.
        findings: What was concluded, worst first.
    """

    snapshot: Snapshot
    findings: tuple[Finding, ...]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Render for the width and the encoding of a console."""
        inert: Callable[[object], str] = printable
        if options.ascii_only:
            inert = _printable_ascii
        yield from _Writer(self, inert, options.max_width).parts()


def _printable_ascii(text: object) -> str:
    return ascii_only(printable(text))


@dataclass(frozen=True)
class _Writer:
    summary: Summary
    inert: Callable[[object], str]
    width: int

    def parts(self) -> Iterator[RenderableType]:
        yield from self._verdict()
        yield from self._findings()
        yield from self._sites()
        yield from self._lines("Coverage", coverage_lines(self.summary.snapshot))
        yield from self._gaps()
        yield from self._lines("Inputs", input_lines(self.summary.snapshot))

    def _text(self, text: object, style: str = "") -> Any:
        from rich.text import Text

        return Text(self.inert(text), style=style)

    def _verdict(self) -> Iterator[RenderableType]:
        told = verdict(self.summary.findings, self.summary.snapshot)
        yield self._text(f"shiftscope · {subtitle(self.summary.snapshot)}", "dim")
        style = _STYLE[told["severity"]]
        line = self._text(f"{told['severity'].upper()}  ", style)
        yield line.append_text(self._text(told["sentence"], "bold"))
        if score := score_line(self.summary.snapshot):
            yield self._text(score)
        yield self._text("")

    def _findings(self) -> Iterator[RenderableType]:
        from rich.table import Table

        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=8)
        grid.add_column(overflow="fold")
        for finding in self.summary.findings:
            title = self._text(f"{finding.title} [{finding.cause}]", "bold")
            grid.add_row(self._text(finding.severity, _STYLE[finding.severity]), title)
            for row in _body(finding):
                grid.add_row("", self._text(row))
        if self.summary.findings:
            yield grid
            yield self._text("")

    def _sites(self) -> Iterator[RenderableType]:
        sites = self.summary.snapshot.sites
        if sites.empty:
            return
        rows = {str(row["site"]): row for row in sites.to_dict("records")}
        names = ranked(self.summary.snapshot, self.summary.findings)
        seen = has_data(self.summary.snapshot)
        shown = shorten_all(list(map(self.inert, names[:_WORST])), 30)
        columns = [
            (title, [_cell(key, rows[name].get(key)) for name in names[:_WORST]])
            for key, title in (_COLUMNS if seen else _WEIGHT_COLUMNS)
        ]
        columns = _fitting(columns, self.width - max(_NAME, *map(len, shown)))
        table = self._table("site", *(title for title, _ in columns))
        for place, name in enumerate(shown):
            table.add_row(*map(self._text, (name, *(cells[place] for _, cells in columns))))
        which = "Worst" if seen else "First"
        yield self._text(f"{which} {min(_WORST, len(names))} of {len(names)} sites", "bold")
        yield table

    def _table(self, first: str, *titles: str) -> Table:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        table.add_column(self._text(first), overflow="fold", min_width=_NAME)
        for title in titles:
            table.add_column(self._text(title), justify="right", no_wrap=True)
        return table

    def _lines(self, title: str, lines: Sequence[tuple[str, str]]) -> Iterator[RenderableType]:
        if lines:
            told = "; ".join(f"{name} {value}" for name, value in lines)
            yield self._text(f"{title}: ", "bold").append_text(self._text(told, "not bold"))

    def _gaps(self) -> Iterator[RenderableType]:
        gaps = self.summary.snapshot.gaps
        if not gaps:
            return
        yield self._text(f"Not measured: {len(gaps)}", "bold")
        for module, reason in gaps[:_GAPS]:
            yield self._text(f"  {shorten(self.inert(module), 40)}: {shorten(str(reason), 200)}")
        if len(gaps) > _GAPS:
            yield self._text(f"  … and {len(gaps) - _GAPS} more, in report.json")


def _fitting(columns: list[_Column], room: int) -> list[_Column]:
    """Whole columns that fit beside the names: empty ones go first, then from the right."""
    kept = list(columns)
    while len(kept) > 1 and sum(_width(column) for column in kept) + 2 > room:
        empty = [column for column in kept if set(column[1]) <= {"–"}]
        kept.remove((empty or kept)[-1])
    return kept


def _width(column: _Column) -> int:
    title, cells = column
    return 3 + max(map(len, (title, *cells)))


def _cell(key: str, value: Any) -> str:
    return (bounded_share if key == "shift_share" else number)(value, 3)


def _body(finding: Finding) -> list[str]:
    told = [f"{name}: {item.text()}" for name, item in finding.evidence.items()]
    name, limit = finding.threshold
    rows = [f"{'; '.join(told)} (threshold {name} {number(limit)})"]
    if finding.severity == "info":
        return rows
    return [*rows, finding.explanation, f"→ {finding.advice}"]
