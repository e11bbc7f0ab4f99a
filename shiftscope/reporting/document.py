"""``report.json``: everything a report shows, as strict JSON of a documented layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shiftscope.findings import Finding, verdict
from shiftscope.prediction import predict_depth
from shiftscope.reporting.premises import prediction_rows, premise_rows
from shiftscope.reporting.ranking import ranked
from shiftscope.reporting.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    import pandas as pd

    from shiftscope.snapshot import Snapshot

__all__ = ["NEURON_LIMIT", "document", "neuron_choice"]

NEURON_LIMIT = 50_000
"""Neurons written to ``report.json``, some 20 MB; ``snapshot.npz`` always has all of them."""

_DIGITS = 9


def document(
    snapshot: Snapshot, findings: Sequence[Finding], neurons: int = NEURON_LIMIT
) -> dict[str, Any]:
    """The content of ``report.json`` (:data:`~shiftscope.reporting.schema.REPORT_SCHEMA`).

    Args:
        snapshot: What was measured.
        findings: What was concluded, worst first.
        neurons: Largest number of neurons to write; whole sites, the worst ones first.

    Returns:
        Plain data; not-a-number where nothing was measured, which
        :func:`~shiftscope.files.strict_json` writes as ``null``.
    """
    kept, left = neuron_choice(snapshot, findings, neurons)
    return {
        "schema_version": SCHEMA_VERSION,
        "manifest": dict(snapshot.manifest),
        "verdict": verdict(findings, snapshot),
        "sites": snapshot.sites.to_dict("records"),
        "neurons": _columns(snapshot.neurons, kept),
        "neurons_left_out": {
            "sites": left,
            "reason": f"more than {neurons} neurons; snapshot.npz has all" if left else "",
        },
        "findings": [finding.as_dict() for finding in findings],
        "gaps": [{"module": module, "reason": reason} for module, reason in snapshot.gaps],
        "coverage": dict(snapshot.coverage),
        "inputs": dict(snapshot.inputs),
        "premises": premise_rows(snapshot),
        "prediction": prediction_rows(predict_depth(snapshot)),
    }


def neuron_choice(
    snapshot: Snapshot, findings: Sequence[Finding], limit: int
) -> tuple[list[str], list[str]]:
    """Which sites' neurons fit under a limit.

    Args:
        snapshot: What was measured.
        findings: What was concluded.
        limit: Largest number of neurons.

    Returns:
        Sites kept and sites left out, both in order of execution.
    """
    sizes = dict(zip(snapshot.sites["site"], snapshot.sites["neurons"], strict=True))
    kept, total = set(), 0
    for site in ranked(snapshot, findings):
        if total + sizes[site] <= limit:
            kept.add(site)
            total += sizes[site]
    order = list(map(str, snapshot.sites["site"]))
    return [s for s in order if s in kept], [s for s in order if s not in kept]


def _columns(neurons: pd.DataFrame, sites: Sequence[str]) -> dict[str, list[Any]]:
    chosen = neurons[neurons["site"].isin(list(sites))]
    return {str(name): _values(chosen[name]) for name in chosen.columns}


def _values(column: pd.Series[Any]) -> list[Any]:
    values: list[Any] = column.tolist()
    if column.dtype.kind != "f":
        return values
    return [float(f"{value:.{_DIGITS}g}") for value in values]
