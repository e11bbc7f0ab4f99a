"""The layers of a network as a snapshot knows them, and where they form a chain.

A depth map goes from one layer to the next. It applies where a linear map, at most a normalisation
of each neuron, and an activation follow each other with nothing between; whether they do is read
off the numbers: what enters one site has the moments of what left the one before. A sum of
branches, a pooling, dropout, a normalisation across neurons or attention ends the chain, and a new
one starts behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shiftscope.columns import Array, as_float, mean_variance
from shiftscope.record import SiteRecord, Stream
from shiftscope.snapshot import Snapshot

__all__ = ["Layer", "chains", "layers_of"]

_CLOSE = 1e-4
"""Relative difference of moments below which two streams count as one."""
_EXPLAINED = 0.96
"""Share of the variance that one shift and one scale per neuron explain behind a batch norm."""
_ALIKE = 0.03
"""Relative spread of these shifts and scales below which all neurons have the same."""


@dataclass(frozen=True)
class Layer:
    """A linear site with the activation that takes its output, if one does.

    Attributes:
        linear: The record of the linear site.
        activation: That of the activation; None where nothing known takes its output.
        normalized: Whether every neuron is shifted and scaled on its own in between (batch norm).
    """

    linear: SiteRecord
    activation: SiteRecord | None
    normalized: bool = False

    @property
    def site(self) -> str:
        """The name of the linear site."""
        return self.linear.info.site

    @property
    def entrance(self) -> SiteRecord:
        """The site whose z enters the nonlinearity; the linear one where there is none."""
        return self.linear if self.activation is None else self.activation

    @property
    def output(self) -> Stream | None:
        """The stream that leaves the layer."""
        return self.entrance.streams.get("z" if self.activation is None else "a")


def layers_of(snapshot: Snapshot) -> list[Layer]:
    """Pair every measured linear site with the activation behind it.

    Args:
        snapshot: What was measured.

    Returns:
        The layers in order of execution; linear sites without data, without weights or with
        outputs that are all zero or not finite are left out.
    """
    records = sorted(snapshot.records.values(), key=lambda record: record.info.order)
    return [
        _layer(record, following)
        for record, following in zip(records, [*records[1:], None], strict=False)
        if record.info.kind == "linear" and _usable(record)
    ]


def chains(layers: Sequence[Layer]) -> tuple[list[list[int]], list[tuple[str, str]]]:
    """Cut layers into chains that a depth map can follow.

    Args:
        layers: In order of execution.

    Returns:
        The positions in each chain, and ``(site, reason)`` for every layer behind a cut.
    """
    found: list[list[int]] = [[0]] if layers else []
    cuts: list[tuple[str, str]] = []
    for k in range(1, len(layers)):
        reason = _cut(layers[k - 1], layers[k])
        if reason:
            found.append([])
            cuts.append((layers[k].site, reason))
        found[-1].append(k)
    return found, cuts


def _cut(before: Layer, after: Layer) -> str:
    """Why the second layer does not continue the first one's chain; empty where it does."""
    from shiftscope.theory import known

    record = before.activation
    if record is not None and (record.info.op not in known() or not record.info.elementwise):
        return f"no gain is known of {record.info.op}"
    output, taken = before.output, after.linear.streams.get("a")
    if output is None or taken is None or not _same(output, taken):
        return (
            f"its input is not the output of {before.entrance.info.site}: a sum of branches, "
            "pooling, dropout, reshaping or a normalisation lies between"
        )
    return ""


def _usable(record: SiteRecord) -> bool:
    weights = record.weights
    if weights is None or not record.streams.keys() >= {"z", "a"}:
        return False
    power = float(record.streams["z"].moments.pooled().total)
    known = math.isfinite(power) and math.isfinite(mean_variance(record.streams["a"]))
    return bool(known and power > 0 and weights.norm2.sum() > 0 and weights.xi > 0)


def _layer(record: SiteRecord, following: SiteRecord | None) -> Layer:
    if following is None or following.info.kind != "activation":
        return Layer(record, None)
    ours, theirs = record.streams.get("z"), following.streams.get("z")
    if ours is None or theirs is None or record.info.neurons != following.info.neurons:
        return Layer(record, None)
    if _same(ours, theirs):
        return Layer(record, following)
    if _normalized(ours, theirs):
        return Layer(record, following, normalized=True)
    return Layer(record, None)


def _same(one: Stream, other: Stream) -> bool:
    """Whether two streams have the same moments, neuron by neuron."""
    mean, variance = _moments(one)
    theirs, their_variance = _moments(other)
    if mean.shape != theirs.shape:
        return False
    scale = float(np.sqrt(np.mean(variance + np.square(mean))))
    return bool(
        np.allclose(mean, theirs, rtol=_CLOSE, atol=_CLOSE * scale)
        and np.allclose(variance, their_variance, rtol=_CLOSE, atol=_CLOSE**2 * scale**2)
    )


def _moments(stream: Stream) -> tuple[Array, Array]:
    return as_float(stream.moments.mean), as_float(stream.moments.variance)


def _normalized(one: Stream, other: Stream) -> bool:
    """Whether the second stream is the first with every neuron shifted and scaled on its own.

    Judged on equal rows. In training mode a batch norm does so batch by batch, which leaves a
    scatter of one over the batch size; a layer norm of many neurons comes as close, but shifts and
    scales all of them alike.
    """
    if one.sample is None or other.sample is None:
        return False
    before, after = as_float(one.sample.rows), as_float(other.sample.rows)
    same_rows = np.array_equal(as_float(one.sample.priority), as_float(other.sample.priority))
    if before.shape != after.shape or len(before) < 3 or not same_rows:
        return False
    left, right = before - before.mean(axis=0), after - after.mean(axis=0)
    product = np.einsum("ij,ij->j", left, right)
    inner, outer = np.einsum("ij,ij->j", left, left), np.einsum("ij,ij->j", right, right)
    moving = inner * outer > 0
    if not moving.any():
        return False
    explained = np.square(product[moving]) / (inner * outer)[moving]
    slope = (product / np.where(moving, inner, 1.0))[moving]
    offset = after.mean(axis=0)[moving] - slope * before.mean(axis=0)[moving]
    scale = math.sqrt(float(outer[moving].mean()) / len(after))
    alike = slope.std() <= _ALIKE * np.abs(slope).mean() and offset.std() <= _ALIKE * scale
    return bool(explained.mean() > _EXPLAINED and not alike)
