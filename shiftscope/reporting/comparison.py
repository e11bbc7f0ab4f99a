"""Comparisons as files: a page, a strict JSON document, a figure, both snapshots."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shiftscope import __version__
from shiftscope.comparison import Comparison
from shiftscope.files import atomic_folder, strict_json
from shiftscope.findings import Finding
from shiftscope.reporting.comparison_rows import (
    Outlook,
    cells,
    comparison_sentence,
    headings,
    scores,
)
from shiftscope.reporting.formats import FORMATS, chosen
from shiftscope.reporting.pictures import Picture
from shiftscope.reporting.templates import asset, digest, inline_figure, template, trusted
from shiftscope.reporting.words import number, printable

__all__ = ["COMPARISON_VERSION", "comparison_document", "comparison_page", "write_comparison"]

COMPARISON_VERSION = 1
"""Version of the layout of ``comparison.json``."""

_NAME = "before-after"


def comparison_document(comparison: Comparison, outlook: Outlook | None = None) -> dict[str, Any]:
    """The content of ``comparison.json``.

    Args:
        comparison: What was compared.
        outlook: What had been predicted.

    Returns:
        ``schema_version``, scores, sites, findings of both, what was gained, lost and got worse.
    """
    document = {"schema_version": COMPARISON_VERSION, **comparison.as_dict()}
    if outlook is not None:
        document["predicted"] = dict(outlook.document or {"shift_share": outlook.shift_share})
    return document


def comparison_page(
    comparison: Comparison, outlook: Outlook | None = None, pictures: Sequence[Picture] = ()
) -> str:
    """Write the page.

    Args:
        comparison: What was compared.
        outlook: What had been predicted.
        pictures: Figures to stand inline.

    Returns:
        HTML with styles and figures inline: no network, no scripts.
    """
    style = asset("report.css") + asset("verification.css")
    worse = comparison.worse("watch")
    return template("comparison.html").render(
        version=__version__,
        style=trusted(style),
        style_hash=digest(style),
        severity=worse[0].severity if worse else "info",
        sentence=comparison_sentence(comparison),
        notes=[printable(note) for note in outlook.notes] if outlook else [],
        score_headings=("", "before", *(("predicted",) if outlook else ()), "after"),
        scores=scores(comparison, outlook),
        pictures=[inline_figure(picture) for picture in pictures],
        findings=_findings(comparison),
        headings=headings(comparison, outlook),
        rows=cells(comparison, outlook, None),
        manifest=_manifest(comparison),
    )


def write_comparison(
    comparison: Comparison,
    out: str | os.PathLike[str],
    formats: Iterable[str] = FORMATS,
    outlook: Outlook | None = None,
) -> tuple[Path, ...]:
    """Write ``comparison.html``, ``comparison.json``, the figure and both snapshots.

    Everything is written to a temporary sibling first and moved into place when complete.

    Args:
        comparison: What :func:`shiftscope.compare` returned.
        out: The folder; made when it does not exist.
        formats: Any of ``"html"``, ``"png"``, ``"json"``.
        outlook: What had been predicted.

    Returns:
        The files.

    Raises:
        UsageError: A format is not known, or there is no place to write.
    """
    wanted = chosen(formats)
    pictures = _pictures(comparison, outlook) if {"html", "png"} & wanted else []
    contents: dict[str, bytes] = {}
    if "html" in wanted:
        contents["comparison.html"] = comparison_page(comparison, outlook, pictures).encode()
    if "json" in wanted:
        contents["comparison.json"] = strict_json(comparison_document(comparison, outlook)).encode()
    if "png" in wanted:
        contents |= {f"figures/{p.name}.png": p.png for p in pictures}
    with atomic_folder(out) as place:
        for name, content in contents.items():
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_bytes(content)
        comparison.before.save(place / "before.npz")
        comparison.after.save(place / "after.npz")
    return tuple(Path(out) / name for name in (*contents, "before.npz", "after.npz"))


def _pictures(comparison: Comparison, outlook: Outlook | None) -> list[Picture]:
    """Draw and render; imported here, since a document alone needs no plotting library."""
    from shiftscope.draw.comparison import comparison_profile
    from shiftscope.draw.output import to_png_bytes

    figure = comparison_profile(comparison, outlook.shift_share if outlook else None)
    crosses = "; crosses: predicted before anything was changed" if outlook else ""
    return [
        Picture(
            _NAME,
            "Before and after, over the depth",
            f"Rings: before. Discs: after{crosses}. One column a site, input side left.",
            f"Shift share, variance of z and of its gradient at {len(comparison.frame)} sites.",
            to_png_bytes(figure),
        )
    ]


def _findings(comparison: Comparison) -> list[dict[str, str]]:
    old = {f.cause: f for f in comparison.findings_before}
    new = {f.cause: f for f in comparison.findings_after}
    told = []
    unjudged = {f.cause for f in comparison.unjudged}
    if comparison.outcome is not None:
        new = {"outcome": comparison.outcome, **new}
    for cause in dict.fromkeys((*new, *old)):
        told.append(
            {
                "cause": cause.replace("_", " "),
                "before": _severity(old.get(cause)),
                "after": "not looked for" if cause in unjudged else _severity(new.get(cause)),
                "title": printable((new.get(cause) or old[cause]).title),
            }
        )
    return told


def _severity(finding: Finding | None) -> str:
    return finding.severity if finding is not None else "–"


def _manifest(comparison: Comparison) -> list[tuple[str, str, str]]:
    pair = (comparison.before.manifest, comparison.after.manifest)
    names = dict.fromkeys((*pair[0], *pair[1]))
    rows = [(printable(n), *(number(_flat(m.get(n))) for m in pair)) for n in names]
    return [(name, old, new) for name, old, new in rows if (old, new) != ("–", "–")]


def _flat(value: Any) -> Any:
    return str(value) if isinstance(value, Mapping | list | tuple) else value
