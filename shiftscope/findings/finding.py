"""What a finding is: a cause, where it was seen, the numbers behind it, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "CAUSES",
    "SEVERITIES",
    "Evidence",
    "Finding",
    "counted",
    "percent",
    "severity_rank",
    "short",
]

SEVERITIES = ("info", "watch", "serious", "critical")
"""Levels of concern, mildest first."""

CAUSES = (
    "non_finite",
    "outcome",
    "norm_statistics",
    "activation_shift",
    "weight_scale",
    "exploding_gradient",
    "vanishing_gradient",
    "variance_collapse",
    "saturation",
    "dead_units",
    "not_learning",
    "below_resolution",
    "coverage",
)
"""Identifiers of causes; of two findings of one severity the earlier cause is told first."""

_NINES = 6
_EXACT = 1e-9
"""Errors below this are not written out."""


def severity_rank(severity: str) -> int:
    """Position of a severity in :data:`SEVERITIES` (0 is the mildest)."""
    return SEVERITIES.index(severity)


@dataclass(frozen=True)
class Evidence:
    """One number behind a finding, with what is known about its error.

    Attributes:
        value: The number (or a short text, where the evidence is one).
        se: Standard error of the value, in the same unit.
        low: Lower confidence bound.
        high: Upper confidence bound.
        rows: Rows (or independent samples, where the unit says so) behind the value.
        site: The site it was measured at, when it belongs to one.
        unit: What the value counts (``"decades"``, ``"decades/layer"``, ...).
    """

    value: float | int | str
    se: float | None = None
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    site: str | None = None
    unit: str = ""

    def text(self) -> str:
        """The number as people read it: value ± error, unit, bounds, rows."""
        words = [_with_error(self.value, self.se)]
        if self.unit:
            words.append(self.unit)
        if _known(self.low) and _known(self.high):
            words.append(f"({_number(self.low)} to {_number(self.high)})")
        elif _known(self.high):
            words.append(f"(below {_number(self.high)} at 95 % confidence)")
        if self.rows is not None:
            words.append(f"from {self.rows} rows")
        if self.site is not None:
            words.append(f"at {short(self.site)}")
        return " ".join(words)

    def as_dict(self) -> dict[str, Any]:
        """The parts that are known, for ``report.json``."""
        parts = {name: getattr(self, name) for name in ("se", "low", "high", "rows", "site")}
        out: dict[str, Any] = {"value": self.value}
        out |= {name: part for name, part in parts.items() if part is not None}
        return out | ({"unit": self.unit} if self.unit else {})


@dataclass(frozen=True)
class Finding:
    """One cause, wherever it was seen.

    Attributes:
        cause: Identifier, one of :data:`CAUSES`.
        severity: One of :data:`SEVERITIES`.
        title: One sentence that holds the most telling number.
        sites: The sites concerned, worst first.
        evidence: Name to number, with standard errors, bounds and rows.
        threshold: ``(name, value)`` of the threshold that was crossed; the name is a field of
            :class:`~shiftscope.findings.Thresholds`.
        source: Where the threshold comes from.
        explanation: What the numbers mean, and what else they rule in or out.
        advice: What to do about it.
        follows_from: Cause of the finding this one is a consequence of ("" when it stands alone).
    """

    cause: str
    severity: str
    title: str
    sites: tuple[str, ...]
    evidence: Mapping[str, Evidence]
    threshold: tuple[str, float]
    source: str
    explanation: str
    advice: str
    follows_from: str = field(default="")

    @property
    def rank(self) -> tuple[int, int]:
        """Sort key: worst severity first, then the order of :data:`CAUSES`."""
        return -severity_rank(self.severity), CAUSES.index(self.cause)

    def as_dict(self) -> dict[str, Any]:
        """The finding as plain data, for ``report.json``."""
        return {
            "cause": self.cause,
            "severity": self.severity,
            "title": self.title,
            "sites": list(self.sites),
            "evidence": {name: item.as_dict() for name, item in self.evidence.items()},
            "threshold": {"name": self.threshold[0], "value": self.threshold[1]},
            "source": self.source,
            "explanation": self.explanation,
            "advice": self.advice,
            "follows_from": self.follows_from,
        }


def counted(number: int, noun: str) -> str:
    """A number of things, in words that fit one as well."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def short(site: object, length: int = 48) -> str:
    """A site name of bounded length, its middle left out where it is longer."""
    name = str(site)
    return name if len(name) <= length else f"{name[: length // 3]}…{name[-length // 2 :]}"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def percent(share: float) -> str:
    """A share in per cent with enough nines: 50 %, 99.9 %, 99.99 %, over 99.9999 %."""
    if not 0.99 < share <= 1:
        return f"{100 * share:.0f} %"
    nines = math.floor(-math.log10(1 - share)) if share < 1 else _NINES  # 1.0 by rounding
    if nines >= _NINES:
        return f"over {100 - 10.0 ** (2 - _NINES):.{_NINES - 2}f} %"
    return f"{math.floor(share * 10**nines) / 10 ** (nines - 2):.{nines - 2}f} %"


def _with_error(value: Any, error: float | None) -> str:
    """Value ± error with the digits the error leaves standing."""
    if not _known(error) or not isinstance(value, float | int):
        return _number(value)
    size = float(error or 0.0)
    if size < _EXACT:
        return f"{_number(value)} (error below {_EXACT:g})"
    if size > 1 / _EXACT:
        return f"{_number(value)} ± {size:.1g}"
    digits = max(0, 1 - math.floor(math.log10(size)))
    return f"{value:.{digits}f} ± {size:.{digits}f}"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else "not measured"
    return str(value)
