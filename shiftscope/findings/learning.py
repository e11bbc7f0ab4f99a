"""Weights that are still those of their initialisation, and accuracy at chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shiftscope.findings.finding import Evidence, Finding, severity_rank
from shiftscope.findings.reading import Reading, Row, known
from shiftscope.findings.thresholds import Thresholds

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["initial_spread", "not_learning"]

_MEAN = 1 / 3
_FEW_NEURONS = 5.0
"""Standard errors by which the spread may exceed its limit where a layer has few neurons."""

_GUESSING = 0.02
"""A cross-entropy above log(classes) minus this is that of guessing."""

_BIAS_SLACK = 1.1
"""Biases may have drifted a tenth of their range: the last layer fits the class frequencies."""


def not_learning(
    reading: Reading, thresholds: Thresholds, others: Sequence[Finding] = ()
) -> Finding | None:
    """Find a network whose weights look untouched since a uniform ±1/sqrt(fan_in) initialisation.

    Alone it is a remark, since every network begins like that. Together with an accuracy or a
    loss at chance and a cause that blocks learning it says that training did nothing. Weights
    that are trained while the accuracy is chance point at the data instead.

    Args:
        reading: The snapshot.
        thresholds: Limits.
        others: The other findings.

    Returns:
        One finding, or None.
    """
    judged = [(row, spread) for row in reading.linear if (spread := _spread(reading, row))]
    fresh = [(row, spread) for row, spread in judged if spread.untouched(thresholds)]
    if not judged or len(fresh) < len(judged):
        return _trained_in_vain(reading, [spread for _, spread in judged], thresholds)
    blocked = any(severity_rank(item.severity) >= severity_rank("serious") for item in others)
    chance = _chance(reading)
    widest = max(fresh, key=lambda pair: pair[0]["neurons"])
    return Finding(
        cause="not_learning",
        severity="serious" if blocked and chance else "info",
        title=_title(len(fresh), chance),
        sites=tuple(str(row["site"]) for row, _ in fresh),
        evidence=_evidence(widest, chance),
        threshold=("initial_spread", thresholds.initial_spread),
        source=thresholds.source("initial_spread"),
        explanation=(
            "At every linear site the squared row norms have mean 1/3 and the spread of a uniform "
            "draw from ±1/sqrt(fan_in), PyTorch's default; training widens that spread many times. "
            "Either the network has not been trained, or training did not move it."
        ),
        advice=(
            "If it was trained, remove what blocks it (the findings above) and start again from a "
            "fresh initialisation; more epochs will not help."
            if blocked
            else "If it was trained, check that the optimizer holds these parameters and that the "
            "file is the trained one. At initialisation this is as it should be."
        ),
    )


def _trained_in_vain(
    reading: Reading, spreads: Sequence[_Spread], thresholds: Thresholds
) -> Finding | None:
    """Accuracy at chance with weights whose row norms no random draw would give."""
    chance = _chance(reading)
    widest = max(spreads, key=lambda spread: spread.relative, default=None)
    if widest is None or "accuracy" not in chance:
        return None
    if widest.relative < thresholds.trained_spread:
        return None
    return Finding(
        cause="not_learning",
        severity="watch",
        title=f"The accuracy of {chance['accuracy'].value:.1%} is chance on trained weights",
        sites=(),
        evidence={"relative_norm_spread": Evidence(widest.relative), **chance},
        threshold=("trained_spread", thresholds.trained_spread),
        source=thresholds.source("trained_spread"),
        explanation=(
            "The row norms of at least one layer differ far more than those of a random draw, so "
            "training has moved them; yet on these data the network guesses."
        ),
        advice=(
            "Compare the statistics of the inputs with the normalisation used in training, and the "
            "order of the classes with the labels."
        ),
    )


@dataclass(frozen=True)
class _Spread:
    """Squared row norms of one site against those of a uniform initialisation."""

    ratio: float
    relative: float
    mean: float
    neurons: int
    fan_in: int
    bias: float

    def untouched(self, thresholds: Thresholds) -> bool:
        slack = 1 + _FEW_NEURONS * math.sqrt(2 / self.neurons)
        return self.ratio < max(thresholds.initial_spread, slack) and self.bias <= _BIAS_SLACK


def initial_spread(norm2: npt.NDArray[np.float64], fan_in: int) -> float:
    """Mean squared deviation of ||w||^2 from 1/3, in units of its variance at initialisation.

    For w uniform in ±1/sqrt(m), ||w||^2 has mean 1/3 and variance 4/(45 m).

    Args:
        norm2: Squared norms of the rows, ``[neurons]``.
        fan_in: m.

    Returns:
        About 1 for an untouched layer, with standard deviation sqrt(2/neurons).
    """
    return float(np.mean((norm2 - _MEAN) ** 2) * 45 * fan_in / 4)


def _spread(reading: Reading, row: Row) -> _Spread | None:
    if not known(row.get("eta")) or not known(row.get("fan_in")) or row["fan_in"] < 2:
        return None
    frame = reading.neurons_of(str(row["site"]))
    norms = np.asarray(frame["weight_norm"], dtype=np.float64)
    if not norms.size or not np.isfinite(norms).all():
        return None
    fan_in = int(row["fan_in"])
    bias = np.abs(np.asarray(frame["bias"], dtype=np.float64)) * math.sqrt(fan_in)
    known_bias = bias[np.isfinite(bias)]
    mean = float(np.mean(norms**2))
    return _Spread(
        ratio=initial_spread(norms**2, fan_in),
        # Rows of zeros, as heads are often initialised, are all alike.
        relative=float(np.var(norms**2) / mean**2 * fan_in / 2) if mean > 0 else 0.0,
        mean=mean,
        neurons=len(norms),
        fan_in=fan_in,
        bias=float(known_bias.max()) if known_bias.size else 0.0,
    )


def _chance(reading: Reading) -> dict[str, Evidence]:
    """Accuracy and loss, where the manifest has them and they are at chance."""
    manifest: Mapping[str, Any] = reading.snapshot.manifest
    classes = int(reading.head["neurons"]) if reading.head else 0
    found: dict[str, Evidence] = {}
    if classes < 2:
        return found
    samples = int(manifest.get("accuracy_rows") or manifest.get("samples") or 0)
    accuracy, loss = manifest.get("accuracy"), manifest.get("loss")
    chance = float(manifest.get("chance_accuracy") or 1 / classes)
    error = math.sqrt(chance * (1 - chance) / samples) if samples else math.inf
    if known(accuracy) and float(accuracy or 0) <= chance + 2 * error:
        found["accuracy"] = Evidence(float(accuracy or 0), se=error, rows=samples)
        found["accuracy_by_chance"] = Evidence(chance)
    if known(loss) and float(loss or 0) >= math.log(classes) - _GUESSING:
        found["loss"] = Evidence(float(loss or 0), rows=samples or None)
    return found


def _title(count: int, chance: Mapping[str, Evidence]) -> str:
    tail = ""
    if "accuracy" in chance:
        tail = f", and the accuracy of {chance['accuracy'].value:.1%} is chance"
    elif "loss" in chance:
        tail = f", and the loss of {chance['loss'].value:.3f} is that of guessing"
    return f"The weights of all {count} linear sites look untouched since initialisation{tail}"


def _evidence(widest: tuple[Row, _Spread], chance: dict[str, Evidence]) -> dict[str, Evidence]:
    row, spread = widest
    error = math.sqrt(4 / (45 * spread.fan_in * spread.neurons))
    return {
        "norm_spread_ratio": Evidence(
            spread.ratio, se=math.sqrt(2 / spread.neurons), site=str(row["site"])
        ),
        "mean_squared_norm": Evidence(spread.mean, se=error, site=str(row["site"])),
        **chance,
    }
