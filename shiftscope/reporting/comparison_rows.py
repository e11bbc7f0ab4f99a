"""A comparison in rows of words: its sentence, its table, what had been predicted beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shiftscope.comparison import Comparison
from shiftscope.reporting.words import number, printable

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Outlook", "cells", "comparison_sentence", "comparison_table", "headings", "scores"]

_SHOWN = (
    ("shift_share", "shift share", 3),
    ("log10_within_var", "lg V(z)", 3),
    ("log10_grad_z_var", "lg V(∇z)", 4),
)
_OF_WEIGHTS = (("log10_eta", "lg ‖w‖²", 4), ("lcw_residual", "max |cos(w, 1)|", 3))
"""What is shown where weights alone were read."""


@dataclass(frozen=True)
class Outlook:
    """What had been predicted, to stand beside what came.

    Attributes:
        shift_share: Predicted shift share by site.
        lines: ``(what, before, predicted, after)`` for numbers of the whole network.
        notes: Sentences: what was done, assumptions, warnings.
        document: Everything as plain data.
    """

    shift_share: Mapping[str, float]
    lines: Sequence[tuple[str, float, float, float]] = ()
    notes: Sequence[str] = ()
    document: Mapping[str, Any] | None = None


def comparison_sentence(comparison: Comparison) -> str:
    """Say in one line what came, what went, and what got worse."""
    worse = {finding.cause for finding in comparison.worse("info")}
    gained = [f.cause for f in comparison.gained]
    parts = [
        _listed("gone", [f.cause for f in comparison.lost]),
        _listed("new", gained),
        _listed("graver", sorted(worse - {*gained, "outcome"})),
        _listed("not looked for in the second:", [f.cause for f in comparison.unjudged]),
    ]
    told = "; ".join(part for part in parts if part)
    sentence = f"Findings: {told}." if told else "The findings are the same, none graver."
    if comparison.outcome is not None:
        sentence = f"{comparison.outcome.title}. {sentence}"
    if _weights_only(comparison):
        sentence += " Weights alone were compared; most findings need data (--model and --data)."
    return sentence


def _listed(word: str, causes: Sequence[str]) -> str:
    return f"{word} {', '.join(cause.replace('_', ' ') for cause in causes)}" if causes else ""


def comparison_table(
    comparison: Comparison, outlook: Outlook | None = None, rows: int | None = None
) -> Table:
    """Make the table for a terminal.

    Args:
        comparison: What :func:`shiftscope.compare` returned.
        outlook: What had been predicted.
        rows: Sites to show, those that changed most; None for all.

    Returns:
        A rich table; names in it are inert.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for place, heading in enumerate(headings(comparison, outlook)):
        table.add_column(heading, justify="right" if place else "left", no_wrap=place > 0)
    for row in cells(comparison, outlook, rows):
        table.add_row(*map(Text, row))
    return table


def _weights_only(comparison: Comparison) -> bool:
    return any(s.manifest.get("weights_only") for s in (comparison.before, comparison.after))


def _shown(comparison: Comparison) -> tuple[tuple[str, str, int], ...]:
    return _OF_WEIGHTS if _weights_only(comparison) else _SHOWN


def headings(comparison: Comparison, outlook: Outlook | None) -> tuple[str, ...]:
    """Headings of the columns of :func:`cells`."""
    names = ["site"]
    for key, label, _ in _shown(comparison):
        predicted = ["predicted"] if outlook and key == "shift_share" else []
        names += [label, *predicted, "after"]
        names += ["± s.e."] if key == "shift_share" else []
    return tuple(names)


def cells(
    comparison: Comparison, outlook: Outlook | None, rows: int | None
) -> list[tuple[str, ...]]:
    """One row of text a site, in the order of execution.

    Args:
        comparison: What was compared.
        outlook: What had been predicted.
        rows: Sites to show, those that changed most; None for all.
    """
    table = comparison.frame.to_dict("records")
    if rows is not None and len(table) > rows:
        first = _shown(comparison)[0][0]
        kept = sorted(range(len(table)), key=lambda i: -_moved(table[i], first))[:rows]
        table = [table[i] for i in sorted(kept)]
    shown = _shown(comparison)
    return [_cell_row({str(k): v for k, v in row.items()}, shown, outlook) for row in table]


def _cell_row(
    row: Mapping[str, Any], shown: Sequence[tuple[str, str, int]], outlook: Outlook | None
) -> tuple[str, ...]:
    status = "" if row["status"] == "both" else f" ({row['status']})"
    told = [(printable(row["site"]) or "(model)") + status]
    for key, _, digits in shown:
        told.append(number(row[f"{key}_before"], digits))
        if outlook is not None and key == "shift_share":
            told.append(number(outlook.shift_share.get(row["site"], math.nan), digits))
        told.append(number(row[f"{key}_after"], digits))
        if key == "shift_share":
            told.append(number(row[f"{key}_se"], 2))
    return tuple(told)


def _moved(row: Mapping[Any, Any], quantity: str) -> float:
    change = abs(row[f"{quantity}_change"])
    return float(change) if math.isfinite(change) else 2.0


def scores(comparison: Comparison, outlook: Outlook | None) -> list[tuple[str, ...]]:
    """``(what, before, predicted where there is an outlook, after)`` of the whole network."""
    rows = []
    for name, (old, new) in comparison.scores.items():
        rows.append((name, number(old), *(("–",) if outlook else ()), number(new)))
    for name, *values in outlook.lines if outlook else ():
        rows.append((printable(name), *(number(value) for value in values)))
    return rows
