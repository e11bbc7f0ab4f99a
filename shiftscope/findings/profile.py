"""A straight line through a logarithm over the depth: rate, total and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["FATAL", "Profile", "fit_profile"]

FATAL = 2.0
"""A total this many times beyond its limit is critical: no longer a matter of patience."""

_LINE = 4
"""Sites from which a straight line says more than the two ends."""


@dataclass(frozen=True)
class Profile:
    """How a quantity changes over the depth, in decades.

    Attributes:
        sites: The sites that entered, in order of execution.
        logs: log10 of the quantity at each of them.
        rate: Least-squares slope in decades per layer, positive in the direction asked about.
        rate_se: Its standard error (regression and sampling together).
        measured: Difference between the two ends in decades, same sign as the rate.
        samples: Independent samples behind each site (the fewest).
    """

    sites: tuple[str, ...]
    logs: tuple[float, ...]
    rate: float
    rate_se: float
    measured: float
    samples: int

    @property
    def layers(self) -> int:
        """Number of sites."""
        return len(self.sites)

    @property
    def total(self) -> float:
        """Decades over the whole depth.

        From four sites on it is the smaller of the fitted and the measured total, so that neither
        one odd layer nor a curved profile alone raises an alarm (0 where their signs differ).
        """
        fitted = self.rate * (self.layers - 1)
        if self.layers < _LINE:
            return self.measured
        if fitted * self.measured <= 0:
            return 0.0
        return math.copysign(min(abs(fitted), abs(self.measured)), fitted)

    @property
    def total_se(self) -> float:
        """Standard error of :attr:`total`."""
        return self.rate_se * (self.layers - 1)

    def exceeds(self, limit: float, errors: float) -> bool:
        """Whether the total is above a limit by so many standard errors."""
        return self.total - errors * self.total_se > limit

    def below(self, errors: float) -> float:
        """Upper bound of the total, by so many standard errors."""
        return self.total + errors * self.total_se


def fit_profile(
    rows: Sequence[Mapping[str, Any]], logs: Sequence[float], *, rising: bool
) -> Profile | None:
    """Fit a line through log10 values over the position in the depth.

    Args:
        rows: The sites, in order of execution.
        logs: log10 of the quantity at each; sites whose value is not finite are left out.
        rising: True when a rise from input to output counts as positive (a gradient that
            vanishes towards the input), False when a fall does (a variance that collapses).

    Returns:
        The profile, or None with fewer than two sites.
    """
    kept = [(row, log) for row, log in zip(rows, logs, strict=True) if math.isfinite(log)]
    if len(kept) < 2:
        return None
    values = np.array([log for _, log in kept], dtype=np.float64) * (1.0 if rising else -1.0)
    samples = min(_samples(row) for row, _ in kept)
    rate, error = _line(values)
    ends = _sampling_error(samples) / (len(values) - 1)
    return Profile(
        sites=tuple(str(row["site"]) for row, _ in kept),
        logs=tuple(float(log) for _, log in kept),
        rate=rate,
        rate_se=math.hypot(error, ends),
        measured=float(values[-1] - values[0]),
        samples=samples,
    )


def _line(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    depth = np.arange(len(values), dtype=np.float64)
    depth -= depth.mean()
    square = float(depth @ depth)
    rate = float(depth @ values) / square
    if len(values) < 3:
        return rate, 0.0
    residual = values - values.mean() - rate * depth
    return rate, math.sqrt(float(residual @ residual) / (len(values) - 2) / square)


def _sampling_error(samples: int) -> float:
    # V has relative error sqrt((kurtosis - 1)/N); both ends, as if neurons did not average it out
    return math.sqrt(2) * math.sqrt(2 / samples) / math.log(10) if samples else math.inf


def _samples(row: Mapping[str, Any]) -> int:
    for name in ("samples", "count"):
        value = row.get(name, math.nan)
        if isinstance(value, float | int) and math.isfinite(value) and value > 0:
            return int(value)
    return 0
