"""What the page says of a run: its windows, and evaluation beside training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shiftscope.reporting.words import bounded_share, number, printable, shorten_all

if TYPE_CHECKING:
    import pandas as pd

    from shiftscope.trace import Trace, Window

__all__ = ["missed_lines", "run_section"]

_SHOWN = 40
_GAPS = 8
_NAME = 48
_WORDS = {"train": "training", "eval": "evaluation"}
_COLUMNS = ("shift_share", "within_var", "between_var")


def run_section(trace: Trace) -> dict[str, Any]:
    """The windows of a run in words, and its latest one of evaluation beside that of training.

    Args:
        trace: The run.

    Returns:
        A sentence; where there are windows of both phases also a caption and table rows, and what
        evaluation did not measure.
    """
    phases = {window.phase: trace.phase(window.phase).windows for window in trace}
    sentence = " ".join([_sentence(len(trace), phases), *missed_lines(trace)])
    out: dict[str, Any] = {"sentence": sentence, "rows": []}
    if not {"train", "eval"} <= set(phases):
        return out
    train, beside = phases["train"][-1], phases["eval"][-1]
    rows = _rows(train.snapshot.sites, beside.snapshot.sites)
    names = shorten_all([printable(row[0]) for row in rows], _NAME)
    gaps = beside.snapshot.gaps[:_GAPS] if any("–" in row for row in rows) else ()
    return out | {
        "caption": (
            f"The latest window of training ({_steps(train)}) beside the latest of evaluation "
            f"({_steps(beside)}); the sites whose shift shares differ most come first."
        ),
        "rows": [(name or "(model)", *row[1:]) for name, row in zip(names, rows, strict=True)],
        "more": max(len(train.snapshot.sites) - _SHOWN, 0),
        "gaps": [(printable(m) or "(model)", printable(why)) for m, why in gaps],
    }


def missed_lines(trace: Trace) -> list[str]:
    """A sentence for each phase of whose latest recorded steps nothing was kept."""
    return [
        f"Of the latest recorded steps of {_WORDS.get(phase, printable(phase))} "
        f"no site was kept: {printable(reason)}."
        for phase, (reason, _) in trace.missed.items()
    ]


def _sentence(count: int, phases: dict[str, list[Window]]) -> str:
    told = [
        f"{len(windows)} of {_WORDS.get(phase, printable(phase))} ({_steps(*windows)})"
        for phase, windows in phases.items()
    ]
    judged = "Findings, figures and tables are of training where they do not say otherwise."
    words = f"{count} window{'s' if count != 1 else ''}: {' and '.join(told)}."
    return f"{words} {judged}" if len(told) > 1 else words


def _steps(*windows: Window) -> str:
    first = min(window.first for window in windows)
    last = max(window.last for window in windows)
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _rows(train: pd.DataFrame, beside: pd.DataFrame) -> list[tuple[str, ...]]:
    """One row a site of training, those that differ most first."""
    other = beside.drop_duplicates("site").set_index("site").reindex(train["site"])
    share = train["shift_share"].to_numpy(dtype=float) - other["shift_share"].to_numpy(dtype=float)
    order = np.argsort(-np.nan_to_num(np.abs(share), nan=-1.0), kind="stable")[:_SHOWN]
    return [
        (
            str(train["site"].iloc[k]),
            *(
                (bounded_share if name == "shift_share" else number)(float(frame[name].iloc[k]))
                for name in _COLUMNS
                for frame in (train, other)
            ),
        )
        for k in order
    ]
