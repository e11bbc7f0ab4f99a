"""The site table of the page: what its columns are called, what its cells say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shiftscope.findings import Finding
from shiftscope.reporting.ranking import blame, has_data, ranked
from shiftscope.reporting.words import bounded_share, number, printable, shorten_all
from shiftscope.site_table import SITE_COLUMNS

if TYPE_CHECKING:
    from shiftscope.snapshot import Snapshot

__all__ = ["FIRST_ROWS", "Column", "SiteTable"]

FIRST_ROWS = 200
"""Rows written as HTML; the rest is drawn from the data on demand."""

NAME_LENGTH = 72
"""Characters of a site name in the table; the middle of longer ones is left out."""

_DIGITS = 5


@dataclass(frozen=True)
class Column:
    """A column of the site table.

    Attributes:
        key: Its name in the data.
        title: Its heading.
        hint: What it is, in a few words.
        text: Whether its cells are words.
    """

    key: str
    title: str
    hint: str
    text: bool = False


COLUMNS = (
    Column("order", "#", "place in the order of execution"),
    Column("site", "site", "where in the model", text=True),
    Column("finding", "finding", "severity of the worst finding here", text=True),
    Column("op", "op", "operation", text=True),
    Column("neurons", "neurons", "width of z"),
    Column("shift_share", "shift share", "between-neuron share of the pooled variance of z"),
    Column("z_mean", "mean z", "mean over neurons"),
    Column("z_std", "sd z", "standard deviation within neurons"),
    Column("gain_fw", "gain fw", "V(z)/V(a) of a linear map, V(a)/V(z) of an activation"),
    Column("gain_bw", "gain bw", "V(∇a)/V(∇z) of a linear map, V(∇z)/V(∇a) of an activation"),
    Column("log10_grad_z_var", "log₁₀ V(∇z)", "variance of the gradient, in decades"),
    Column("dead", "dead", "units that were never active"),
    Column("saturated", "flat", "share of rows where the activation is saturated"),
)
"""The columns that are shown; all others stand under the strip of the chosen site."""

_NAMING = COLUMNS[:5]

WEIGHT_COLUMNS = (
    *_NAMING,
    Column("fan_in", "fan in", "inputs of a neuron"),
    Column("eta", "η", "mean squared norm of the rows: forward gain of the weights"),
    Column("xi", "ξ", "mean squared norm of the columns about their mean: backward gain"),
    Column(
        "lcw_residual", "max |cos(w, 1)|", "largest share of a row along 1; 0 for zero-sum rows"
    ),
)
"""The columns that are shown where no data went through."""


class SiteTable:
    """The sites of a snapshot, worst first, as cells and as data for the page.

    Args:
        snapshot: What was measured.
        findings: What was concluded, worst first.
    """

    def __init__(self, snapshot: Snapshot, findings: Sequence[Finding]) -> None:
        worst = blame(findings)
        rows = {str(row["site"]): row for row in snapshot.sites.to_dict("records")}
        told = has_data(snapshot) or snapshot.sites.empty
        self.columns = COLUMNS if told else WEIGHT_COLUMNS
        self.names = ranked(snapshot, findings)
        self.rows = [_row(rows[name], worst.get(name, "")) for name in self.names]
        self.place = {name: place for place, name in enumerate(self.names)}
        labels = shorten_all(list(map(printable, self.names)), NAME_LENGTH)
        self.labels = [label or "(model)" for label in labels]

    def cells(self) -> list[dict[str, Any]]:
        """The first rows for the template: ``order``, ``severity`` and a text for each column."""
        return [
            {
                "order": row["order"],
                "severity": row["finding"],
                "share": row["shift_share"] if _known(row["shift_share"]) else None,
                "name": printable(row["site"]),
                "cells": [
                    (column.key, label if column.key == "site" else _cell(row, column.key))
                    for column in self.columns
                ],
            }
            for row, label in zip(self.rows[:FIRST_ROWS], self.labels, strict=False)
        ]

    def data(self) -> dict[str, Any]:
        """All rows for the page: column names, and one list a row."""
        keys = [key for key in _KEYS if any(_present(row[key]) for row in self.rows)]
        return {
            "keys": keys,
            "labels": {
                row["order"]: label
                for row, label in zip(self.rows, self.labels, strict=True)
                if label != printable(row["site"])
            },
            "rows": [[_compact(row[key], key) for key in keys] for row in self.rows],
        }


_KEYS = tuple(dict.fromkeys([*(column.key for column in COLUMNS), *SITE_COLUMNS]))


def _row(row: Mapping[Any, Any], severity: str) -> dict[str, Any]:
    linear = row["kind"] == "linear"
    extra = {
        "finding": severity,
        "gain_fw": row["eta_measured" if linear else "phi_fw"],
        "gain_bw": row["xi_measured" if linear else "phi_bw"],
    }
    return {str(key): cell for key, cell in row.items()} | extra


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if key == "shift_share":
        return bounded_share(value)
    return "" if value == "" else number(value)


def _present(value: Any) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and value != value)


def _known(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _compact(value: Any, key: str) -> Any:
    if key == "shift_share" and _known(value):
        return round(value, 9)  # its distance from one is what counts
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else _rounded(value)
    return printable(value) if isinstance(value, str) else value


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
