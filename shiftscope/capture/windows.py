"""What a probe keeps of a window while it is open, and how windows are put together."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.optim import Optimizer

from shiftscope.errors import UsageError
from shiftscope.record import SiteRecord
from shiftscope.snapshot import Snapshot

__all__ = ["OpenWindow", "combined", "matching", "optimizer_of"]


@dataclass
class OpenWindow:
    """A window that is being recorded.

    Attributes:
        first: Number of its first step.
        last: Number of its last step.
        steps: Recorded steps.
        batches: Forward passes of them.
        forwards: Forward passes since the last step ended.
    """

    first: int
    last: int = -1
    steps: int = 0
    batches: int = 0
    forwards: int = 0

    def ended(self, step: int) -> None:
        """A recorded step ended."""
        if not self.steps:
            self.first = step
        self.last, self.steps = step, self.steps + 1
        self.batches, self.forwards = self.batches + self.forwards, 0


def combined(older: Snapshot, newer: Snapshot) -> Snapshot:
    """Both windows together, with the row samples of the newer one."""
    records = {name: _without_samples(record) for name, record in older.records.items()}
    merged = replace(older, records=records, kept_quantiles={}).merge(newer)
    return replace(merged, manifest={**merged.manifest, **_latest(newer)}, pictures=newer.pictures)


def matching(records: Mapping[str, SiteRecord], patterns: Sequence[str]) -> dict[str, SiteRecord]:
    """The records of the sites that one of the patterns names."""
    return {name: record for name, record in records.items() if wanted(name, patterns)}


def wanted(site: str, patterns: Sequence[str]) -> bool:
    """Whether a site is to be kept."""
    return any(p == "*" or fnmatch.fnmatchcase(site, p) for p in patterns)


def optimizer_of(given: Any) -> Optimizer:
    """The torch optimizer that makes the steps, also inside a wrapper."""
    inner = given
    for _ in range(4):
        if isinstance(inner, Optimizer):
            return inner
        inner = getattr(inner, "optimizer", None)
    raise UsageError(
        f"steps are counted by the hooks of a torch optimizer, got {type(given).__name__}",
        "leave optimizer out and call probe.step() after each step",
    )


def _without_samples(record: SiteRecord) -> SiteRecord:
    streams = {name: replace(s, sample=None) for name, s in record.streams.items()}
    return replace(record, streams=streams)


def _latest(snapshot: Snapshot) -> dict[str, Any]:
    names = ("step", "overflow_steps", "schedule")
    return {name: snapshot.manifest[name] for name in names if name in snapshot.manifest}
