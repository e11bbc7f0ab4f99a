"""A report as files: page, document, snapshot or trace, and figures, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftscope.files import atomic_folder, place_named, strict_json
from shiftscope.findings import Finding, diagnose, verdict
from shiftscope.findings.headline import headline
from shiftscope.given import each, expect
from shiftscope.reporting.document import document
from shiftscope.reporting.formats import FORMATS, chosen
from shiftscope.reporting.page import page
from shiftscope.reporting.pictures import Picture

if TYPE_CHECKING:
    from shiftscope.snapshot import Snapshot
    from shiftscope.trace import Trace

__all__ = ["Report", "report"]


@dataclass(frozen=True)
class Report:
    """A written report; usable wherever a path to its folder is.

    Attributes:
        folder: The folder.
        files: Every file that was written, in it.
        findings: What was concluded, worst first.
    """

    folder: Path
    files: tuple[Path, ...]
    findings: tuple[Finding, ...]

    def __fspath__(self) -> str:
        """The folder as a path."""
        return str(self.folder)


def report(
    measured: Snapshot | Trace,
    out: str | os.PathLike[str],
    formats: Iterable[str] = FORMATS,
    *,
    findings: Sequence[Finding] | None = None,
) -> Report:
    """Write a report that can be read, searched and rebuilt.

    Writes ``report.html`` (one file that works offline), ``report.json`` (strict, documented by
    :data:`shiftscope.reporting.REPORT_SCHEMA`), ``figures/*.png`` and ``snapshot.npz``, from which
    all of it can be rebuilt without the model. Everything is written to a temporary sibling first
    and moved into place when complete; when something fails, what stood there is untouched.

    Of a trace the last window is reported as a snapshot is, with dated findings and with figures
    and a table of the whole run; ``trace.npz`` is written beside it.

    Args:
        measured: A snapshot, or the trace of a run.
        out: The folder to write into; made when it does not exist.
        formats: Any of ``"html"``, ``"png"``, ``"json"``.
        findings: What was concluded; None diagnoses with the default thresholds.

    Returns:
        The folder and its files.

    Raises:
        UsageError: A format is not known, an argument is of another kind, the trace is empty, or
            the folder cannot be written.
    """
    from shiftscope.snapshot import Snapshot
    from shiftscope.trace import Trace  # behind it stands torch

    expect("measured", measured, Snapshot, Trace)
    wanted = chosen(formats)
    trace = measured if isinstance(measured, Trace) else None
    snapshot = measured.last if isinstance(measured, Trace) else measured
    told = each("findings", diagnose(measured) if findings is None else findings, Finding)
    pictures = _pictures(snapshot, told, trace) if {"html", "png"} & wanted else []
    folder = place_named(out)
    with atomic_folder(folder) as place:
        if "html" in wanted:
            text = page(snapshot, told, pictures, trace=trace)
            _write(place / "report.html", text.encode())
        if "json" in wanted:
            content = document(snapshot, told) | {"verdict": verdict(told, measured)}
            content |= {} if trace is None else _of_run(trace)
            _write(place / "report.json", strict_json(content).encode())
        if "png" in wanted:
            for picture in pictures:
                _write(place / "figures" / f"{picture.name}.png", picture.png)
        snapshot.save(place / "snapshot.npz")
        if trace is not None:
            trace.save(place / "trace.npz")
        names = [item.relative_to(place) for item in sorted(place.rglob("*")) if item.is_file()]
    return Report(folder, tuple(folder / name for name in names), told)


def _pictures(
    snapshot: Snapshot, findings: Sequence[Finding], trace: Trace | None
) -> list[Picture]:
    """Draw and render; imported here, since a document alone needs no plotting library."""
    from shiftscope.draw.gallery import figures
    from shiftscope.draw.output import to_png_bytes
    from shiftscope.draw.run_gallery import run_figures

    drawn = [] if trace is None else run_figures(trace, findings)
    return [
        Picture(item.name, item.title, item.caption, item.alt, to_png_bytes(item.figure))
        for item in [*drawn, *figures(snapshot, findings)]
    ]


def _of_run(trace: Trace) -> dict[str, Any]:
    windows = [
        {"first": w.first, "last": w.last, "phase": w.phase, **headline(w.snapshot)} for w in trace
    ]
    missed = {phase: reason for phase, (reason, _) in trace.missed.items()}
    return {"windows": windows} | ({"missed": missed} if missed else {})


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
