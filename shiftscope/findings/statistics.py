"""Normalisations that normalise by nothing: running statistics as they were initialised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftscope.findings.finding import Evidence, Finding, short
from shiftscope.findings.reading import Reading, known
from shiftscope.findings.thresholds import Thresholds

__all__ = ["norm_statistics"]


def norm_statistics(reading: Reading, thresholds: Thresholds) -> Finding | None:
    """Find normalisations that ran on running statistics which nothing ever updated.

    Args:
        reading: The snapshot.
        thresholds: Limits (none is used: one layer is enough).

    Returns:
        One finding, or None.
    """
    manifest = reading.snapshot.manifest
    number = manifest.get("norms_at_initialisation")
    first = str(manifest.get("first_norm_at_initialisation", ""))
    if not known(number) or not number:
        return None
    return Finding(
        cause="norm_statistics",
        severity="serious",
        title=(
            f"Running statistics that were never updated: in {_share(int(number), manifest)}, "
            f"first in {short(first)}"
        ),
        sites=(),
        evidence={
            "layers": Evidence(int(number), unit="normalisation layers"),
            "first_layer": Evidence(first),
        },
        threshold=("norms_at_initialisation", 0.0),
        source="a running mean of exactly 0 and a running variance of exactly 1 in every channel",
        explanation=(
            "In evaluation mode these layers divide by running statistics, which still are those "
            "of initialisation: they normalise nothing. What is measured here is another network "
            "than the one that was, or will be, trained."
        ),
        advice=(
            "Load the checkpoint with its buffers (running_mean, running_var), or run some batches "
            "in training mode first. To see a fresh network, measure it in training mode "
            "(model.train())."
        ),
    )


def _share(found: int, manifest: Mapping[str, Any]) -> str:
    running = int(manifest.get("norms", found))
    if found == running:
        return "the one normalisation" if running == 1 else f"all {running} normalisations"
    return f"{found} of {running} normalisations"
