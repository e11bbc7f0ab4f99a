"""``report.html``: one page that works offline, under a policy that lets nothing else in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shiftscope import __version__
from shiftscope.files import strict_json
from shiftscope.findings import Finding, verdict
from shiftscope.reporting.phases import run_section
from shiftscope.reporting.pictures import Picture
from shiftscope.reporting.premises import premise_section
from shiftscope.reporting.ranking import HEADS
from shiftscope.reporting.strips import STEPS, strips
from shiftscope.reporting.table import FIRST_ROWS, SiteTable
from shiftscope.reporting.templates import asset, digest, inline_figure, template, trusted
from shiftscope.reporting.text import plain_summary
from shiftscope.reporting.words import (
    coverage_lines,
    input_lines,
    manifest_lines,
    number,
    printable,
    score_line,
    shorten_all,
    subtitle,
)

if TYPE_CHECKING:
    from shiftscope.snapshot import Snapshot
    from shiftscope.trace import Trace

__all__ = ["STRIP_BUDGET", "page", "script_json"]

STRIP_BUDGET = 300_000
"""Characters of packed quantiles a page carries by default."""

_GAPS = 200
_NAME = 48
_TITLES = {"critical": "Critical", "serious": "Serious", "watch": "Worth watching"}


def page(
    snapshot: Snapshot,
    findings: Sequence[Finding],
    pictures: Sequence[Picture] = (),
    budget: int | None = STRIP_BUDGET,
    trace: Trace | None = None,
) -> str:
    """Write the page.

    Args:
        snapshot: What was measured.
        findings: What was concluded, worst first.
        pictures: Figures to stand inline.
        budget: Characters of packed neuron quantiles; None for all of them.
        trace: The run whose last window the snapshot is; None where there is no run.

    Returns:
        HTML: styles, scripts, figures and data inline; no network, no ``style`` attribute, no
        event attribute.
    """
    table = SiteTable(snapshot, findings)
    packed, missing = strips(snapshot, table.names, 2**62 if budget is None else budget)
    told = verdict(findings, snapshot if trace is None else trace)
    style, script = asset("report.css"), asset("report.js")
    return template("report.html").render(
        version=__version__,
        style=trusted(style),
        script=trusted(script),
        style_hash=digest(style),
        script_hash=digest(script),
        subtitle=subtitle(snapshot),
        verdict=told | {"sentence": printable(told["sentence"])},
        verdict_title=_title(told),
        score=score_line(snapshot),
        coverage_sentence=_coverage_sentence(snapshot),
        findings=[_finding(finding, table) for finding in findings],
        run={} if trace is None else run_section(trace),
        figures=[inline_figure(picture) for picture in pictures],
        missing=_missing(missing, len(packed)),
        columns=table.columns,
        rows=table.cells(),
        total=len(table.rows),
        premises=premise_section(snapshot),
        coverage=coverage_lines(snapshot),
        inputs=input_lines(snapshot),
        manifest=manifest_lines(snapshot),
        gaps=[(printable(m) or "(model)", printable(r)) for m, r in snapshot.gaps[:_GAPS]],
        more_gaps=max(len(snapshot.gaps) - _GAPS, 0),
        data=trusted(script_json(_data(snapshot, findings, table, packed))),
    )


def script_json(value: Any) -> str:
    """Strict JSON that may stand inside a script element: no markup, no line separators.

    Args:
        value: Plain data.

    Returns:
        ASCII text without ``<``, ``>`` and ``&``.
    """
    text = strict_json(value)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(
    snapshot: Snapshot,
    findings: Sequence[Finding],
    table: SiteTable,
    packed: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    order = {name: table.rows[place]["order"] for name, place in table.place.items()}
    return {
        **table.data(),
        "first": FIRST_ROWS,
        "steps": STEPS,
        "findings": {f.cause: [order[s] for s in f.sites if s in order] for f in findings},
        "strips": {order[name]: streams for name, streams in packed.items()},
        "text": plain_summary(snapshot, findings),
    }


def _finding(finding: Finding, table: SiteTable) -> dict[str, Any]:
    name, limit = finding.threshold
    linked = [table.place.get(site) for site in finding.sites[:HEADS]]
    labels = shorten_all(list(map(printable, finding.sites[:HEADS])), _NAME)
    return {
        "cause": finding.cause,
        "severity": finding.severity,
        "title": printable(finding.title),
        "explanation": printable(finding.explanation),
        "advice": printable(finding.advice),
        "source": printable(finding.source),
        "threshold": f"{name} {number(limit)}",
        "evidence": [
            (printable(key).replace("_", " "), printable(item.text()))
            for key, item in finding.evidence.items()
        ],
        "sites": [
            (label or "(model)", None if at is None else table.rows[at]["order"])
            for label, at in zip(labels, linked, strict=True)
        ],
        "count": len(finding.sites),
        "more": max(len(finding.sites) - HEADS, 0),
    }


def _title(told: dict[str, str]) -> str:
    clear = "No fault found" if told["sentence"].startswith("No fault") else "No verdict"
    return _TITLES.get(told["severity"], clear)


def _coverage_sentence(snapshot: Snapshot) -> str:
    shares = [f"{name} {value}" for name, value in coverage_lines(snapshot)[:1]]
    gaps = len(snapshot.gaps)
    parts = [f"Measured: {shares[0]}."] if shares else []
    parts += [f"{gaps} module{'s' if gaps != 1 else ''} not measured."] if gaps else []
    return " ".join(parts)


def _missing(missing: Sequence[str], carried: int) -> str:
    if not missing:
        return ""
    names = ", ".join(shorten_all(list(map(printable, missing[:5])), _NAME))
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return (
        f"To keep this page small it carries the neurons of the {carried} worst sites; those of "
        f"{len(missing)} sites are left out: {names}{more}."
    )
