"""A comparison for people: a table for the terminal, a page, a document and a figure."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftscope import __version__
from shiftscope.comparison import Comparison
from shiftscope.errors import UsageError
from shiftscope.files import atomic_folder, strict_json
from shiftscope.findings import Finding
from shiftscope.reporting.pictures import Picture
from shiftscope.reporting.words import number, printable

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "COMPARISON_VERSION",
    "Outlook",
    "comparison_document",
    "comparison_page",
    "comparison_sentence",
    "comparison_table",
    "write_comparison",
]

COMPARISON_VERSION = 1
"""Version of the layout of ``comparison.json``."""

_FORMATS = ("html", "png", "json")
_SHOWN = (
    ("shift_share", "shift share", 3),
    ("log10_within_var", "lg V(z)", 3),
    ("log10_grad_z_var", "lg V(∇z)", 4),
)
_OF_WEIGHTS = (("log10_eta", "lg ‖w‖²", 4), ("lcw_residual", "max |cos(w, 1)|", 3))
"""What is shown where weights alone were read."""
_NAME = "before-after"


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
    for place, heading in enumerate(_headings(comparison, outlook)):
        table.add_column(heading, justify="right" if place else "left", no_wrap=place > 0)
    for cells in _cells(comparison, outlook, rows):
        table.add_row(*map(Text, cells))
    return table


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
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    style = _asset("report.css") + _asset("verification.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    worse = comparison.worse("watch")
    return environment.from_string(_asset("comparison.html")).render(
        version=__version__,
        style=Markup(style),
        style_hash=digest,
        severity=worse[0].severity if worse else "info",
        sentence=comparison_sentence(comparison),
        notes=[printable(note) for note in outlook.notes] if outlook else [],
        score_headings=("", "before", *(("predicted",) if outlook else ()), "after"),
        scores=_scores(comparison, outlook),
        pictures=[_figure(picture) for picture in pictures],
        findings=_findings(comparison),
        headings=_headings(comparison, outlook),
        rows=_cells(comparison, outlook, None),
        manifest=_manifest(comparison),
    )


def write_comparison(
    comparison: Comparison,
    out: str | os.PathLike[str],
    formats: Iterable[str] = _FORMATS,
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
    wanted = {formats} if isinstance(formats, str) else set(formats)
    unknown = sorted(wanted - set(_FORMATS))
    if unknown:
        raise UsageError(
            f"a report has no format {unknown[0]!r}", f"choose among {', '.join(_FORMATS)}"
        )
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


def _weights_only(comparison: Comparison) -> bool:
    return any(s.manifest.get("weights_only") for s in (comparison.before, comparison.after))


def _shown(comparison: Comparison) -> tuple[tuple[str, str, int], ...]:
    return _OF_WEIGHTS if _weights_only(comparison) else _SHOWN


def _headings(comparison: Comparison, outlook: Outlook | None) -> tuple[str, ...]:
    names = ["site"]
    for key, label, _ in _shown(comparison):
        predicted = ["predicted"] if outlook and key == "shift_share" else []
        names += [label, *predicted, "after"]
        names += ["± s.e."] if key == "shift_share" else []
    return tuple(names)


def _cells(
    comparison: Comparison, outlook: Outlook | None, rows: int | None
) -> list[tuple[str, ...]]:
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
    cells = [(printable(row["site"]) or "(model)") + status]
    for key, _, digits in shown:
        cells.append(number(row[f"{key}_before"], digits))
        if outlook is not None and key == "shift_share":
            cells.append(number(outlook.shift_share.get(row["site"], math.nan), digits))
        cells.append(number(row[f"{key}_after"], digits))
        if key == "shift_share":
            cells.append(number(row[f"{key}_se"], 2))
    return tuple(cells)


def _moved(row: Mapping[Any, Any], quantity: str) -> float:
    change = abs(row[f"{quantity}_change"])
    return float(change) if math.isfinite(change) else 2.0


def _scores(comparison: Comparison, outlook: Outlook | None) -> list[tuple[str, ...]]:
    rows = []
    for name, (old, new) in comparison.scores.items():
        rows.append((name, number(old), *(("–",) if outlook else ()), number(new)))
    for name, *values in outlook.lines if outlook else ():
        rows.append((printable(name), *(number(value) for value in values)))
    return rows


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


def _figure(picture: Picture) -> dict[str, Any]:
    width, height = picture.size
    return {
        "title": picture.title,
        "caption": picture.caption,
        "alt": picture.alt,
        "data": base64.b64encode(picture.inline()).decode("ascii"),
        "width": width,
        "height": height,
    }


def _asset(name: str) -> str:
    return files("shiftscope.reporting").joinpath(name).read_text(encoding="utf-8")
