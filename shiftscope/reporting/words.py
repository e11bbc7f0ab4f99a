"""Text that stands in a report: names made inert, numbers and tables made readable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shiftscope.draw.elide import elide

if TYPE_CHECKING:
    from shiftscope.snapshot import Snapshot

__all__ = [
    "ascii_only",
    "bounded_share",
    "coverage_lines",
    "input_lines",
    "manifest_lines",
    "number",
    "printable",
    "score_line",
    "shorten",
    "shorten_all",
    "subtitle",
]

_ASCII = {
    **{"±": "+/-", "−": "-", "–": "-", "·": "*", "…": "...", "∇": "grad ", "→": "->", "×": "x"},
    **{"η": "eta", "ξ": "xi", "φ": "phi", "μ": "mu", "σ": "sigma", "θ": "theta", "≤": "<="},
    **{"“": '"', "”": '"', "’": "'", "↑": "^", "↓": "v", "²": "^2", "₁": "1", "₀": "0"},
}
_NINES = 6
"""Nines of a share near one that are written out."""

_NUMBERS_SHOWN = 8
"""Longest list of numbers that is written out."""


def printable(text: object) -> str:
    r"""The text on one line, with everything invisible as an escape (``\x1b``, ``\u202e``).

    Args:
        text: Anything with a string form; names from a checkpoint above all.

    Returns:
        The line.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shorten(text: str, length: int) -> str:
    """Leave out the middle of a long text; the end of a path tells more than its start."""
    if len(text) <= length:
        return text
    tail = (length - 1) * 3 // 5
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


def shorten_all(texts: Sequence[str], length: int) -> list[str]:
    """:func:`shorten` of each text; different ones keep apart what differs between them."""
    return elide(texts, length)


def ascii_only(text: str) -> str:
    """The text for a terminal without Greek letters; what has no spelling becomes an escape."""
    spelt = "".join(_ASCII.get(c, c) for c in text)
    return spelt.encode("ascii", "backslashreplace").decode("ascii")


def number(value: Any, digits: int = 4) -> str:
    """A cell of a table: few digits, an en dash where nothing was measured.

    Args:
        value: A number, a text or None.
        digits: Significant digits.

    Returns:
        The text.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, float | int):
        return printable(value)
    if float(value).is_integer() and abs(value) < 10**9:
        return f"{int(value):,}" if abs(value) >= 10**4 else str(int(value))
    return f"{value:.{digits}g}"


def bounded_share(value: Any, digits: int = 4) -> str:
    """A share as a cell; one that would be rounded to 1 keeps its nines: 0.99998, >0.999999.

    Args:
        value: The share, or None.
        digits: Significant digits of shares that are not next to one.

    Returns:
        The text.
    """
    told = number(value, digits)
    if told != "1":
        return told
    nines = math.floor(-math.log10(1 - value)) if value < 1 else _NINES
    if nines >= _NINES:
        return f">{1 - 10.0**-_NINES:.{_NINES}f}"
    return f"{math.floor(value * 10 ** (nines + 1)) / 10 ** (nines + 1):.{nines + 1}f}"


def subtitle(snapshot: Snapshot) -> str:
    """What was measured, in one line under the heading."""
    manifest = snapshot.manifest
    parts = [str(manifest[key]) for key in ("checkpoint", "model") if manifest.get(key)]
    parts.append(_plural(len(snapshot.sites), "site"))
    if manifest.get("parameters"):
        parts.append(f"{_count(manifest['parameters'])} parameters")
    if manifest.get("samples"):
        parts.append(_plural(manifest["samples"], "sample"))
        if manifest.get("batches"):
            parts[-1] += f" in {_plural(manifest['batches'], 'batch', 'es')}"
        if manifest.get("empty_batches"):
            parts[-1] += f" and {manifest['empty_batches']} empty"
    parts += [f"{key} {manifest[key]}" for key in ("seed",) if key in manifest]
    return printable(" · ".join(parts))


def score_line(snapshot: Snapshot) -> str:
    """How well the model did on these data, where that is known: accuracy, chance, loss."""
    manifest, parts = snapshot.manifest, []
    accuracy, chance = manifest.get("accuracy"), manifest.get("chance_accuracy")
    if isinstance(accuracy, float | int):
        parts.append(f"Accuracy {100 * accuracy:.1f} %")
        if isinstance(manifest.get("accuracy_rows"), int):
            parts[-1] += f" of {number(manifest['accuracy_rows'])} rows"
        if isinstance(chance, float | int):
            parts[-1] += f" (always the most frequent class: {100 * chance:.1f} %)"
    if isinstance(manifest.get("loss"), float | int):
        parts.append(f"{'loss' if parts else 'Loss'} {number(manifest['loss'])}")
    return f"{', '.join(parts)}." if parts else ""


def coverage_lines(snapshot: Snapshot) -> list[tuple[str, str]]:
    """``(what, seen of total)`` for each row of the coverage table."""
    lines = []
    for name, row in snapshot.coverage.items():
        if not isinstance(row, Mapping):
            continue
        seen, total = row.get("seen"), row.get("total")
        share = ""
        if isinstance(seen, float | int) and isinstance(total, float | int) and total:
            share = f" ({100 * seen / total:.4g} %)"
        lines.append((printable(name), f"{_count(seen)} of {_count(total)}{share}"))
    return lines


def input_lines(snapshot: Snapshot) -> list[tuple[str, str]]:
    """``(statistic, value)`` of the data that went in."""
    return list(_flat(snapshot.inputs))


def manifest_lines(snapshot: Snapshot) -> list[tuple[str, str]]:
    """``(key, value)`` of what produced the numbers."""
    return list(_flat(snapshot.manifest))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        name = f"{prefix}{printable(key)}"
        if isinstance(value, Mapping) and len(value) <= _NUMBERS_SHOWN and _nested(value):
            yield from _flat(value, f"{name}.")
        else:
            yield name, _cell(value)


def _nested(table: Mapping[str, Any]) -> bool:
    return any(isinstance(item, Mapping | list | tuple) for item in table.values())


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return _listed([f"{printable(k)}: {number(v)}" for k, v in value.items()])
    if isinstance(value, list | tuple):
        return _listed([_cell(item) for item in value])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return shorten(number(value), 300)


def _listed(items: Sequence[str]) -> str:
    shown = ", ".join(items[: 2 * _NUMBERS_SHOWN])
    more = len(items) - 2 * _NUMBERS_SHOWN
    return f"{shown}, … ({more} more)" if more > 0 else shown or "–"


def _plural(count: Any, word: str, ending: str = "s") -> str:
    return f"{number(count)} {word}{'' if count == 1 else ending}"


def _count(value: Any) -> str:
    if not isinstance(value, float | int) or not math.isfinite(value):
        return "unknown"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return number(value)
