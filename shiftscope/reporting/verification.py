"""Verifications as files: a page, a strict JSON document, one figure a claim."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftscope import __version__
from shiftscope.errors import UsageError
from shiftscope.files import atomic_folder, place_named, strict_json
from shiftscope.given import each
from shiftscope.reporting.formats import FORMATS, chosen
from shiftscope.reporting.pictures import Picture
from shiftscope.reporting.templates import asset, digest, inline_figure, template, trusted
from shiftscope.reporting.words import number

if TYPE_CHECKING:
    from shiftscope.theory.verification import Verification

__all__ = [
    "VERIFICATION_VERSION",
    "verification_document",
    "verification_page",
    "write_verification",
]

VERIFICATION_VERSION = 1
"""Version of the layout of ``verification.json``."""

_DPI = 100
"""Sixteen figures stand in the page: at this resolution it stays below a megabyte."""
_WORDS = ("case", "kind", "assumptions", "of")
_DIGITS = ("predicted", "estimate", "standard error", "z", "adjusted p", "rows")


def write_verification(
    verifications: Sequence[Verification],
    out: str | os.PathLike[str],
    formats: Iterable[str] = FORMATS,
) -> tuple[Path, ...]:
    """Write ``verification.html``, ``verification.json`` and ``figures/claim-*.png``.

    Everything is written to a temporary sibling first and moved into place when complete.

    Args:
        verifications: What :func:`shiftscope.verify` returned.
        out: The folder; made when it does not exist.
        formats: Any of ``"html"``, ``"png"``, ``"json"``.

    Returns:
        The files.

    Raises:
        UsageError: A format is not known, there is nothing to write, or no place to write it, or
            an argument is of another kind.
    """
    verifications = _checked(verifications)
    wanted = chosen(formats)
    pictures = _pictures(verifications) if {"html", "png"} & wanted else []
    folder = place_named(out)
    with atomic_folder(folder) as place:
        for name, content in _contents(verifications, pictures, wanted).items():
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_bytes(content)
        names = [item.relative_to(place) for item in sorted(place.rglob("*")) if item.is_file()]
    return tuple(folder / name for name in names)


def _checked(verifications: Any) -> tuple[Verification, ...]:
    from shiftscope.theory.verification import Verification  # behind it stands torch

    found = each("verifications", verifications, Verification)
    if not found:
        raise UsageError("there are no verifications to write", "run shiftscope.verify() first")
    return found


def _contents(
    verifications: Sequence[Verification], pictures: Sequence[Picture], wanted: set[str]
) -> dict[str, bytes]:
    """File name -> content."""
    out: dict[str, bytes] = {}
    if "html" in wanted:
        out["verification.html"] = verification_page(verifications, pictures).encode()
    if "json" in wanted:
        out["verification.json"] = strict_json(verification_document(verifications)).encode()
    if "png" in wanted:
        out |= {f"figures/{p.name}.png": p.png for p in pictures}
    return out


def verification_document(verifications: Sequence[Verification]) -> dict[str, Any]:
    """The content of ``verification.json``.

    Args:
        verifications: What :func:`shiftscope.verify` returned.

    Returns:
        ``schema_version``, ``manifest``, ``passed`` and ``claims``, each with its ``cases`` and
        their ``comparisons``. Strict JSON has no infinity: the z of a broken identity is null.
    """
    return {
        "schema_version": VERIFICATION_VERSION,
        "manifest": dict(_manifest(verifications)),
        "passed": all(v.passed for v in verifications),
        "claims": [
            {
                "id": name,
                "title": cases[0].title,
                "statement": cases[0].statement,
                "source": cases[0].source,
                "passed": all(v.passed for v in cases),
                "cases": [_case(v) for v in cases],
            }
            for name, cases in _grouped(verifications).items()
        ],
    }


def _case(verification: Verification) -> dict[str, Any]:
    row = verification.to_row()
    kept = {k: v for k, v in row.items() if k not in ("claim", "title", "statement", "source")}
    return {**kept, "comparisons": [asdict(c) for c in verification.comparisons]}


def _grouped(verifications: Sequence[Verification]) -> dict[str, list[Verification]]:
    ids = dict.fromkeys(v.claim for v in verifications)
    return {name: [v for v in verifications if v.claim == name] for name in ids}


def _manifest(verifications: Sequence[Verification]) -> list[tuple[str, Any]]:
    first = verifications[0]
    return [
        ("seed", first.seed),
        ("rows a case, at most", max(v.rows for v in verifications)),
        ("rows in total", sum(v.rows for v in verifications)),
        ("cases", len(verifications)),
        ("comparisons", sum(len(v.comparisons) for v in verifications)),
        ("family-wise error rate", first.alpha),
        ("error control", "Bonferroni within a case, Holm over the cases of the run"),
        ("shiftscope", __version__),
        ("python", platform.python_version()),
    ]


def verification_page(
    verifications: Sequence[Verification], pictures: Sequence[Picture] = ()
) -> str:
    """Write the page.

    Args:
        verifications: What :func:`shiftscope.verify` returned.
        pictures: The figures of the claims, named ``claim-`` and the claim.

    Returns:
        HTML with styles and figures inline: no network, no scripts.
    """
    style = asset("report.css") + asset("verification.css")
    failed = [(v.claim, f"{v.claim}, {v.case}") for v in verifications if not v.passed]
    first = verifications[0]
    return template("verification.html").render(
        version=__version__,
        style=trusted(style),
        style_hash=digest(style),
        subtitle=f"Propositions, their controls and errata by simulation, seed {first.seed}",
        summary=f"{len(verifications) - len(failed)} of {len(verifications)} cases as expected",
        failed=failed,
        control=_control(first.alpha),
        errata=_errata(verifications),
        claims=_claims(verifications, {p.name: p for p in pictures}),
        words=_WORDS,
        digits=_DIGITS,
        manifest=_manifest(verifications),
    )


def _control(alpha: float) -> str:
    return (
        "Claims and corrected statements should hold; negative controls, where a premise is "
        "broken on purpose, and statements as printed should be refuted. The probability that a "
        f"run refutes any true statement by chance is at most {alpha:g}."
    )


def _errata(verifications: Sequence[Verification]) -> list[dict[str, str]]:
    """One row for each claim that comes in a printed and a corrected wording."""
    rows = []
    for name, cases in _grouped(verifications).items():
        told = {
            kind: "; ".join(f"{_tail(v.case)}: {v.verdict}" for v in cases if v.kind == kind)
            for kind in ("as printed", "corrected")
        }
        if told["as printed"]:
            rows.append(
                {
                    "id": name,
                    "source": cases[0].source,
                    "statement": cases[0].statement,
                    "printed": told["as printed"],
                    "corrected": told["corrected"],
                }
            )
    return rows


def _tail(case: str) -> str:
    """The name of a case without the kind it starts with."""
    return case.removeprefix("as printed: ").removeprefix("corrected: ")


def _claims(
    verifications: Sequence[Verification], pictures: dict[str, Picture]
) -> list[dict[str, Any]]:
    return [
        {
            "id": name,
            "title": cases[0].title,
            "statement": cases[0].statement,
            "source": cases[0].source,
            "passed": all(v.passed for v in cases),
            "open": not all(v.passed for v in cases) or place == 0,
            "figure": _figure(pictures.get(f"claim-{name}")),
            "rows": [_row(v) for v in cases],
        }
        for place, (name, cases) in enumerate(_grouped(verifications).items())
    ]


def _row(v: Verification) -> dict[str, Any]:
    cells = (v.predicted, v.estimate, v.standard_error, v.z, v.p_adjusted)
    shown = [("∞" if abs(x) == float("inf") else number(x)) for x in cells]
    verdict = v.verdict if v.passed else f"{v.verdict}, expected: {v.expected}"
    words = [v.case, v.kind, v.assumptions, v.quantity]
    return {"words": words, "digits": [*shown, v.rows], "verdict": verdict, "passed": v.passed}


def _figure(picture: Picture | None) -> dict[str, Any] | None:
    return None if picture is None else inline_figure(picture, exact=True)


def _pictures(verifications: Sequence[Verification]) -> list[Picture]:
    """Draw and render; imported here, since a document alone needs no plotting library."""
    from shiftscope.draw.claims import claim_figures
    from shiftscope.draw.output import to_png_bytes

    return [
        Picture(item.name, item.title, item.caption, item.alt, to_png_bytes(item.figure, _DPI))
        for item in claim_figures(verifications)
    ]
