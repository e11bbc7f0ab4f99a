"""Quantiles of the neurons of a site, packed so that a page can carry many of them.

Five quantiles of each neuron are rounded to 1/4095 of the range of the site, ordered by median,
written as differences that are never negative, split into byte planes, deflated and put into
base64: about a third of what sixteen-bit floats would take.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from shiftscope.snapshot import Snapshot

__all__ = ["MOST_NEURONS", "STEPS", "pack", "strips"]

STEPS = 4095
"""Steps into which the range of a site is divided."""

MOST_NEURONS = 4096
"""Neurons of one site that a page carries; of more, evenly spaced ones by median."""

Packed = dict[str, Any]


def strips(
    snapshot: Snapshot, sites: Iterable[str], budget: int
) -> tuple[dict[str, dict[str, Packed]], list[str]]:
    """Packed quantiles of as many sites as fit.

    Args:
        snapshot: What was measured.
        sites: Site names, those that matter most first.
        budget: Characters of base64 to spend.

    Returns:
        Site -> stream (``z``, ``a``) -> packed quantiles; and the sites that had quantiles but
        found no room.
    """
    packed: dict[str, dict[str, Packed]] = {}
    missing = []
    for site in sites:
        quantiles = snapshot.quantiles.get(site, {})
        if budget <= 0:
            missing += [site] if quantiles else []
            continue
        own = _streams(quantiles)
        size = sum(len(item["data"]) for item in own.values())
        if own and size <= budget:
            packed[site] = own
            budget -= size
        elif own:
            missing.append(site)
            budget = 0
    return packed, missing


def pack(table: npt.NDArray[np.float64]) -> Packed | None:
    """Pack the quantiles of one stream of one site.

    Args:
        table: Five rising quantiles of each neuron, ``[5, neurons]``.

    Returns:
        ``n`` (neurons packed), ``of`` (neurons there are), ``low``, ``high`` and ``data``; None
        when no neuron has finite quantiles.
    """
    neurons = np.flatnonzero(np.isfinite(table).all(axis=0))
    if table.shape[0] != 5 or not neurons.size:
        return None
    order = neurons[np.argsort(table[2, neurons], kind="stable")]
    if len(order) > MOST_NEURONS:
        order = order[np.linspace(0, len(order) - 1, MOST_NEURONS).round().astype(int)]
    low, high = float(table[0, order].min()), float(table[4, order].max())
    steps = np.rint((table[:, order] - low) / ((high - low) or 1.0) * STEPS).astype(np.int64)
    q01, q25, q50, q75, q99 = np.maximum.accumulate(steps, axis=0)
    rising = (np.diff(q50, prepend=0), q50 - q25, q25 - q01, q75 - q50, q99 - q75)
    planes = [_planes(order, 4), *(_planes(part, 2) for part in rising)]
    data = base64.b64encode(zlib.compress(b"".join(planes), 9)).decode("ascii")
    return {"n": len(order), "of": table.shape[1], "low": low, "high": high, "data": data}


def _streams(quantiles: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, Packed]:
    packed = {stream: pack(quantiles[stream]) for stream in ("z", "a") if stream in quantiles}
    return {stream: item for stream, item in packed.items() if item is not None}


def _planes(values: npt.NDArray[np.int64], width: int) -> bytes:
    """All lowest bytes, then all second bytes, ...: alike neighbours deflate well."""
    whole = values.astype("<u4").view(np.uint8).reshape(-1, 4)
    return whole.T[:width].tobytes()
