"""Prescriptions as lines and tables for people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from shiftscope.reporting.comparison_rows import Outlook
from shiftscope.reporting.words import number

if TYPE_CHECKING:
    from rich.table import Table

    from shiftscope.fix.prescription import Prescription
    from shiftscope.snapshot import Snapshot

__all__ = ["lines", "outlook", "table"]


def table(prescriptions: Sequence[Prescription]) -> Table:
    """One row a prescription, the best first.

    Args:
        prescriptions: What ``ss.prescribe`` returned.

    Returns:
        A rich table.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    shown.add_column("fix", overflow="fold")
    for heading in ("layers", "shift share", "→", "gain/layer", "→", "decades", "→", "warnings"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for item in prescriptions:
        shown.add_row(*map(Text, _cells(item)))
    return shown


def _cells(item: Prescription) -> tuple[str, ...]:
    gradient = item.gradient
    return (
        f"{item.name}{'' if item.fix is None or item.helps else ' (does not help)'}",
        str(len(item.sites)) if item.fix is not None else "–",
        *(number(share, 3) for share in item.shares),
        number(gradient.before, 3),
        number(gradient.after, 3),
        number(gradient.decades_before, 3),
        number(gradient.decades_after, 3),
        str(len(item.warnings)),
    )


def lines(item: Prescription) -> Iterator[str]:
    """Say what a prescription does, its reservations, and the code for it.

    Args:
        item: The prescription.

    Yields:
        Lines of text.
    """
    against = f" against {', '.join(c.replace('_', ' ') for c in item.causes)}"
    yield f"{item.name}{against if item.causes else ''}"
    if item.advice:
        yield f"  {item.advice}"
    for text in item.warnings:
        yield f"  warning: {text}"
    for text in item.assumptions:
        yield f"  {text}"
    for site, reason in item.skipped[:5]:
        yield f"  left alone: {site}: {reason}"
    if len(item.skipped) > 5:
        yield f"  left alone: {len(item.skipped) - 5} more"
    for text in item.code.splitlines():
        yield f"  >>> {text}"


def outlook(item: Prescription, after: Snapshot) -> Outlook:
    """What was predicted, to be set beside what came.

    Args:
        item: The prescription that was followed.
        after: What was measured afterwards.

    Returns:
        Predicted shares by site, gains, and the notes of the prescription.
    """
    from shiftscope.findings.reading import Reading
    from shiftscope.fix.effects import measured_gain

    gradient = item.gradient
    gain = measured_gain(Reading(after))
    decades = (gradient.layers - 1) * math.log10(gain) if gain > 0 else math.nan
    rows: list[tuple[str, float, float, float]] = [
        ("gradient gain per layer", gradient.before, gradient.after, gain),
        (
            "decades of the gradient over the depth",
            gradient.decades_before,
            gradient.decades_after,
            decades,
        ),
    ]
    notes = [f"Applied: {item.name}.", *item.warnings, *item.assumptions]
    shares = {effect.site: effect.after for effect in item.effects}
    document: dict[str, Any] = item.as_dict()
    return Outlook(shares, rows, notes, document)
