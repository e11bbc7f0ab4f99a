"""``ss.compare``: what changed between two measurements, and whether it got worse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from shiftscope.errors import UsageError
from shiftscope.findings import Finding, Thresholds, diagnose, severity_rank
from shiftscope.findings.finding import SEVERITIES
from shiftscope.findings.outcome import worse_outcome
from shiftscope.findings.reading import Reading, Row, known, samples_of, share_error
from shiftscope.given import expect
from shiftscope.snapshot import Snapshot
from shiftscope.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["QUANTITIES", "SCORES", "Comparison", "compare"]

_Value = Callable[[Row], float]


@dataclass(frozen=True)
class Comparison:
    """Two snapshots side by side.

    Attributes:
        before: The first snapshot.
        after: The second one.
        findings_before: What was found in the first, worst first.
        findings_after: What was found in the second.
    """

    before: Snapshot
    after: Snapshot
    findings_before: tuple[Finding, ...]
    findings_after: tuple[Finding, ...]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a site, in order of execution; sites of only one snapshot at their place.

        Columns: ``site, kind, op, status`` (``both``, ``before only``, ``after only``) and for
        each of :data:`QUANTITIES` ``…_before, …_after, …_change, …_se``. The standard error is
        that of the change, as if the two measurements were independent; the same rows in both
        make it smaller than it says.
        """
        import pandas as pd

        return pd.DataFrame([_row(*pair) for pair in self._pairs()], columns=_columns())

    @property
    def gained(self) -> tuple[Finding, ...]:
        """Findings of the second snapshot whose cause the first has not."""
        had = {finding.cause for finding in self.findings_before}
        return tuple(f for f in self.findings_after if f.cause not in had)

    @property
    def lost(self) -> tuple[Finding, ...]:
        """Findings of the first snapshot whose cause the second was searched for, and has not."""
        return tuple(f for f in self._missing if _judges(self.after, f.cause))

    @property
    def unjudged(self) -> tuple[Finding, ...]:
        """Findings of the first snapshot that the second was not measured for."""
        return tuple(f for f in self._missing if not _judges(self.after, f.cause))

    @property
    def _missing(self) -> list[Finding]:
        has = {finding.cause for finding in self.findings_after}
        return [f for f in self.findings_before if f.cause not in has]

    @cached_property
    def outcome(self) -> Finding | None:
        """What became of loss and accuracy, if it is worse than chance explains."""
        return worse_outcome(self.before.manifest, self.after.manifest)

    def worse(self, level: str = "watch") -> tuple[Finding, ...]:
        """What is at or above a level and new, or graver than it was.

        Args:
            level: ``info``, ``watch``, ``serious`` or ``critical``.

        Returns:
            :attr:`outcome`, and findings of the second snapshot, worst first.

        Raises:
            UsageError: Another level.
        """
        if level not in SEVERITIES:
            raise UsageError(f"unknown level {level!r}", f"Use one of {', '.join(SEVERITIES)}.")
        had = {f.cause: severity_rank(f.severity) for f in self.findings_before}
        now = [*([] if self.outcome is None else [self.outcome]), *self.findings_after]
        return tuple(
            f
            for f in now
            if severity_rank(f.severity) >= max(severity_rank(level), had.get(f.cause, -1) + 1)
        )

    @property
    def scores(self) -> dict[str, tuple[float, float]]:
        """Loss and accuracy of both, where they were measured."""
        both = (self.before.manifest, self.after.manifest)
        values = {name: tuple(_number(manifest.get(name)) for manifest in both) for name in SCORES}
        return {n: (v[0], v[1]) for n, v in values.items() if any(map(math.isfinite, v))}

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "manifests": {"before": dict(self.before.manifest), "after": dict(self.after.manifest)},
            "scores": {n: {"before": b, "after": a} for n, (b, a) in self.scores.items()},
            "sites": self.frame.to_dict("records"),
            "findings_before": [finding.as_dict() for finding in self.findings_before],
            "findings_after": [finding.as_dict() for finding in self.findings_after],
            "gained": [finding.cause for finding in self.gained],
            "lost": [finding.cause for finding in self.lost],
            "unjudged": [finding.cause for finding in self.unjudged],
            "outcome": None if self.outcome is None else self.outcome.as_dict(),
            "worse": [finding.cause for finding in self.worse("info")],
        }

    def _pairs(self) -> list[tuple[Row | None, Row | None]]:
        """Sites by name and kind: those of the second, each lost one behind its predecessor."""
        old, new = ({_key(row): row for row in Reading(s).rows} for s in (self.before, self.after))
        order = list(new)
        for place, name in enumerate(old):
            if name not in new:
                previous = [n for n in list(old)[:place] if n in order]
                order.insert(order.index(previous[-1]) + 1 if previous else 0, name)
        return [(old.get(name), new.get(name)) for name in order]


def compare(before: Any, after: Any, thresholds: Thresholds | None = None) -> Comparison:
    """Compare two measurements of one network, or of two, site by site and finding by finding.

    Sites are matched by name and kind.

    Args:
        before: A snapshot, or a trace, whose last window of training counts.
        after: Likewise.
        thresholds: Limits of the findings; the defaults carry their sources.

    Returns:
        The comparison: ``.frame``, ``.gained``, ``.lost``, ``.worse(level)``.

    Raises:
        UsageError: An argument is neither snapshot nor trace, a trace is empty, or the two share
            no site.

    Example:
        >>> import torch, shiftscope as ss
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Sigmoid())
        >>> before = ss.analyze(model, [torch.rand(32, 8)])
        >>> _ = ss.constrain(model, "lcw")
        >>> change = ss.compare(before, ss.analyze(model, [torch.rand(32, 8)])).frame
        >>> list(change["site"])
        ['0', '1']
    """
    old, new = _snapshot_of(before, "before"), _snapshot_of(after, "after")
    if not old.records and not new.records:
        raise UsageError(
            "neither of the two holds a site: nothing was measured in them",
            "measure with a model and data (--model, --data): see their gaps for what could not be",
        )
    if not set(_keys(old)) & set(_keys(new)):
        raise UsageError(
            f"the two share no site ({_some(old)} in one, {_some(new)} in the other)",
            "compare measurements of one architecture, with the same names of modules",
        )
    found = [tuple(diagnose(snapshot, thresholds)) for snapshot in (old, new)]
    return Comparison(old, new, *found)


def _judges(snapshot: Snapshot, cause: str) -> bool:
    """Whether a snapshot could have shown a finding of some cause."""
    if snapshot.manifest.get("weights_only"):
        return cause in _OF_WEIGHTS
    if cause in _OF_GRADIENTS:
        return any(known(row.get("grad_z_var")) for row in Reading(snapshot).rows)
    return True


def _snapshot_of(value: Any, name: str) -> Snapshot:
    if isinstance(value, Snapshot):
        return value
    expect(name, value, Snapshot, Trace)
    last: Snapshot = value.last
    return last


def _key(row: Row) -> tuple[str, str]:
    return str(row["site"]), str(row["kind"])


def _keys(snapshot: Snapshot) -> list[tuple[str, str]]:
    return [(name, record.info.kind) for name, record in snapshot.records.items()]


def _some(snapshot: Snapshot) -> str:
    names = list(snapshot.records)
    return ", ".join(repr(name) for name in names[:2]) + (", …" if len(names) > 2 else "") or "none"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, float | int) else math.nan


def _log(name: str) -> _Value:
    def value(row: Row) -> float:
        size = _number(row.get(name))
        return math.log10(size) if size > 0 else math.nan

    return value


def _plain(name: str) -> _Value:
    return lambda row: _number(row.get(name))


def _dead_share(row: Row) -> float:
    return _number(row.get("dead")) / max(int(row["neurons"]), 1)


def _log_error(row: Row) -> float:
    # of log10 of a variance of normal rows, as if neurons did not average it out
    samples = samples_of(row)
    return math.sqrt(2 / samples) / math.log(10) if samples else math.nan


def _share_error(row: Row) -> float:
    return share_error(row) if known(row.get("shift_share")) else math.nan


def _flat_error(row: Row) -> float:
    share, samples = _number(row.get("saturated")), samples_of(row)
    return math.sqrt(share * (1 - share) / samples) if samples else math.nan


def _unknown(_: Row) -> float:
    return math.nan


_OF_GRADIENTS = ("vanishing_gradient", "exploding_gradient")
_OF_WEIGHTS = ("coverage", "not_learning")
"""What weights alone can clear; weights that are finite may still give values that are not."""

_MEASURES: dict[str, tuple[_Value, _Value]] = {
    "shift_share": (_plain("shift_share"), _share_error),
    "log10_within_var": (_log("within_var"), _log_error),
    "log10_grad_z_var": (_log("grad_z_var"), _log_error),
    "dead_share": (_dead_share, _unknown),
    "saturated": (_plain("saturated"), _flat_error),
    "log10_eta": (_log("eta"), _unknown),
    "lcw_residual": (_plain("lcw_residual"), _unknown),
}

QUANTITIES = tuple(_MEASURES)
"""What is compared at every site."""

SCORES = ("loss", "accuracy")
"""What is compared of the whole network."""


def _columns() -> list[str]:
    parts = ("before", "after", "change", "se")
    return ["site", "kind", "op", "status", *(f"{q}_{p}" for q in QUANTITIES for p in parts)]


def _row(old: Row | None, new: Row | None) -> dict[str, Any]:
    row = new if new is not None else old
    if row is None:
        return {}
    status = "both" if old and new else "before only" if old else "after only"
    cells: dict[str, Any] = {name: str(row[name]) for name in ("site", "kind", "op")}
    cells["status"] = status
    for name, (value, error) in _MEASURES.items():
        pair = [math.nan if side is None else value(side) for side in (old, new)]
        errors = [math.nan if side is None else error(side) for side in (old, new)]
        cells |= {f"{name}_before": pair[0], f"{name}_after": pair[1]}
        cells |= {f"{name}_change": pair[1] - pair[0], f"{name}_se": math.hypot(*errors)}
    return cells
