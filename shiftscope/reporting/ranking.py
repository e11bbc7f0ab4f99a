"""Sites from the most to the least in need of a look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from shiftscope.findings import Finding

if TYPE_CHECKING:
    from shiftscope.snapshot import Snapshot

__all__ = ["HEADS", "blame", "has_data", "ranked"]

HEADS = 12
"""Sites of a finding that are named (and linked) beside it."""


def has_data(snapshot: Snapshot) -> bool:
    """Whether data went through, finite or not; False where weights alone were read."""
    sites = snapshot.sites
    return bool(sites["shift_share"].notna().any() or (sites["nonfinite"] > 0).any())


def blame(findings: Sequence[Finding]) -> dict[str, str]:
    """Site -> severity of the worst finding that names it."""
    worst: dict[str, str] = {}
    for finding in sorted(findings, key=lambda item: item.rank):
        for site in finding.sites:
            worst.setdefault(site, finding.severity)
    return worst


def ranked(snapshot: Snapshot, findings: Sequence[Finding]) -> list[str]:
    """The worst sites of each finding, then its others, then all other sites by shift share.

    Args:
        snapshot: What was measured.
        findings: What was concluded.

    Returns:
        Every site once.
    """
    sites = snapshot.sites
    share = np.nan_to_num(np.asarray(sites["shift_share"], dtype=np.float64), nan=-1.0)
    rest = sites["site"].to_numpy()[np.argsort(-share, kind="stable")]
    known = set(map(str, sites["site"]))
    heads = [site for finding in findings for site in finding.sites[:HEADS]]
    named = [site for site in (*heads, *blame(findings)) if site in known]
    return list(dict.fromkeys([*named, *map(str, rest)]))
