"""Which sites are kept, and whose steps are counted."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from shiftscope.errors import UsageError
from shiftscope.record import SiteRecord

__all__ = ["matching", "optimizer_of", "wanted"]


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
