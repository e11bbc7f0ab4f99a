"""How far a measured network is from what the propositions assume, in rows and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shiftscope.prediction import predict_depth
from shiftscope.reporting.words import number, printable, shorten_all
from shiftscope.theory import premise_table

if TYPE_CHECKING:
    from shiftscope.prediction import DepthPrediction
    from shiftscope.snapshot import Snapshot

__all__ = ["prediction_rows", "premise_rows", "premise_section"]

_SHOWN = 40
_NAME = 48


def premise_rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    """The premise table as plain data.

    Args:
        snapshot: What was measured.

    Returns:
        One mapping a measured linear site (:func:`shiftscope.theory.premise_table`).
    """
    rows: list[dict[str, Any]] = premise_table(snapshot.sites, snapshot.neurons).to_dict("records")
    return rows


def prediction_rows(prediction: DepthPrediction) -> dict[str, Any]:
    """The predicted depth profile as plain data.

    Args:
        prediction: What :func:`shiftscope.predict_depth` returned.

    Returns:
        Layers, cuts and the gradient gain per layer, predicted and measured.
    """
    return {
        "layers": prediction.frame().to_dict("records"),
        "cuts": [{"site": site, "reason": reason} for site, reason in prediction.cuts],
        "chi_predicted": prediction.predicted_chi,
        "chi": prediction.measured_chi,
        "trainable_depth": _finite(prediction.trainable_depth),
    }


def premise_section(snapshot: Snapshot) -> dict[str, Any]:
    """What the page says of premises.

    Args:
        snapshot: What was measured.

    Returns:
        A sentence, table rows, where the chain of layers is cut; empty where nothing is known.
    """
    rows = premise_rows(snapshot)
    if not rows:
        return {}
    cuts = predict_depth(snapshot).cuts
    return {
        "sentence": _sentence(rows),
        "rows": list(map(_cells, _labels([row["site"] for row in rows[:_SHOWN]]), rows)),
        "more": max(len(rows) - _SHOWN, 0),
        "cuts": [
            (label, printable(why))
            for label, (_, why) in zip(_labels([c[0] for c in cuts[:_SHOWN]]), cuts, strict=False)
        ],
        "more_cuts": max(len(cuts) - _SHOWN, 0),
    }


def _sentence(rows: list[dict[str, Any]]) -> str:
    far = [row["cv"] for row in rows if not row["premise_holds"]]
    if not far:
        where = f"At all {len(rows)} sites" if len(rows) > 1 else "At the only site that was judged"
        return f"{where} the premise holds within sampling error."
    span = f"{min(far):.2f}" + (f" to {max(far):.2f}" if len(far) > 1 else "")
    return (
        f"At {len(far)} of {len(rows)} sites single neurons spread around σ²‖w‖² by a coefficient "
        f"of variation of {span}, more than sampling explains: inputs there are correlated or of "
        "unequal variance. The propositions do not apply to single neurons there; they are not "
        "contradicted."
    )


def _labels(sites: Sequence[str]) -> list[str]:
    return [label or "(model)" for label in shorten_all(list(map(printable, sites)), _NAME)]


def _cells(label: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = ("ratio", "cv", "noise", "ratio_backward")
    told = "holds" if row["premise_holds"] else "fails"
    return (label, *(number(row[n]) for n in numbers), told)


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
