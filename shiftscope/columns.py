"""From records to the columns of the neuron and site tables.

Pure numpy on merged records: nothing here meets a model, a hook or a drawing. Definitions follow
Kutsuna (ECML-PKDD 2019); variances are population variances (ddof 0), and ``V(.)`` in a gain is
the mean of per-neuron variances unless the name says pooled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from shiftscope.record import SiteRecord, Stream, WeightFacts

__all__ = [
    "QUANTILES",
    "Array",
    "decades",
    "input_columns",
    "neuron_columns",
    "quantile_names",
    "ratio",
]

Array = npt.NDArray[np.float64]

QUANTILES = (0.01, 0.25, 0.50, 0.75, 0.99)
"""The quantiles kept for every neuron: whiskers, box and median of the paper's Figures 2-4."""


def quantile_names(stream: str) -> list[str]:
    """Column names of the quantiles of a stream: ``z_q01 ... z_q99``."""
    return [f"{stream}_q{round(100 * q):02d}" for q in QUANTILES]


def neuron_columns(record: SiteRecord, quantiles: Mapping[str, Array]) -> dict[str, Any]:
    """Columns of the neuron table for one site.

    Args:
        record: The merged record of the site.
        quantiles: ``[5, neurons]`` by stream, as far as they were sampled.

    Returns:
        Column name to array ``[neurons]``; columns that do not apply are left out (NaN).
    """
    width = record.info.neurons
    out: dict[str, Any] = {"site": [record.info.site] * width, "neuron": np.arange(width)}
    out |= _z_columns(record.streams.get("z"), width)
    out |= _gradient_columns("grad_z", record.streams.get("grad_z"), width)
    if record.weights is not None:
        out |= weight_columns(record.weights)
    if record.info.kind == "activation":
        out |= _mean_columns("a", record.streams.get("a"), width)
        out |= _gradient_columns("grad_a", record.streams.get("grad_a"), width)
    for stream in ("z", "a") if record.info.kind == "activation" else ("z",):
        table = quantiles.get(stream)
        if table is not None and table.shape[1] == width:
            out |= dict(zip(quantile_names(stream), table, strict=True))
    return out


def input_columns(record: SiteRecord) -> dict[str, Any] | None:
    """Columns of the input table for one linear site: mean and variance of each input neuron."""
    stream = record.streams.get("a")
    if record.info.kind != "linear" or stream is None:
        return None
    width = len(stream.moments.mean)
    out: dict[str, Any] = {"site": [record.info.site] * width, "input": np.arange(width)}
    out |= {"count": as_float(stream.moments.count)} | _mean_columns("a", stream, width)
    return out | _gradient_columns("grad_a", record.streams.get("grad_a"), width)


def weight_columns(weights: WeightFacts) -> dict[str, Any]:
    """Norms, angles and the predicted shift ``w_i . mu`` of each row of a weight matrix.

    Where the mean of z spans more steps than mu, ``shift_measured`` is the shift of the same ones.
    """
    norm = np.sqrt(weights.norm2)
    own = np.full(len(norm), math.nan)
    if weights.z_mean.size:
        own = weights.z_mean - np.nan_to_num(weights.bias)
    return {
        "weight_norm": norm,
        "bias": weights.bias,
        "theta_ones": weights.theta_ones,
        "theta_mean": _angle(weights.shift, norm * neuron_mu_norm(weights)),
        "shift_predicted": weights.shift,
        "shift_measured": own,
    }


def neuron_mu_norm(weights: WeightFacts) -> Array:
    """Norm of the mean input that each neuron sees (its group's, for grouped convolutions)."""
    if not weights.mu.size:
        return np.full(len(weights.norm2), math.nan)
    norms: Array = np.linalg.norm(weights.mu, axis=1)[weights.group]
    return norms


def as_float(tensor: Any) -> Array:
    """A tally's tensor as a float64 numpy array."""
    if hasattr(tensor, "double"):  # numpy has no bfloat16: widen in torch
        tensor = tensor.detach().double().cpu().numpy()
    return np.asarray(tensor, dtype=np.float64)


def ratio(top: float, bottom: float) -> float:
    """A quotient that is NaN where it has no meaning (zero or unknown denominator)."""
    return top / bottom if bottom > 0 and math.isfinite(bottom) and math.isfinite(top) else math.nan


def decades(value: Any) -> Any:
    """log10 of a variance; NaN where it is zero or unknown, since nothing was measured there."""
    values = np.asarray(value, dtype=np.float64)
    logs = np.full(values.shape, math.nan)
    np.log10(values, out=logs, where=values > 0)
    return float(logs) if logs.ndim == 0 else logs


def mean_variance(stream: Stream | None) -> float:
    """Mean over neurons of the per-neuron variances of a stream (NaN when there is none)."""
    if stream is None:
        return math.nan
    variance = as_float(stream.moments.variance)
    known = variance[np.isfinite(variance)]
    return float(known.mean()) if known.size else math.nan


def group_of_rows(count: int, groups: int) -> Sequence[slice]:
    """Cut ``count`` rows into nearly equal blocks, for the jackknife."""
    edges = np.linspace(0, count, groups + 1).astype(int)
    return [slice(int(low), int(high)) for low, high in pairwise(edges)]


def _z_columns(stream: Stream | None, width: int) -> dict[str, Any]:
    if stream is None:
        return {"count": np.zeros(width)}
    out: dict[str, Any] = {
        "count": as_float(stream.moments.count),
        "z_mean": _known(stream, "mean"),
        "z_mean_se": as_float(stream.moments.std_error),
        "z_var": as_float(stream.moments.variance),
        "z_below_resolution": np.asarray(stream.moments.below_resolution, dtype=bool),
    }
    if stream.extrema is not None:
        seen = out["count"] > 0
        out["z_min"] = np.where(seen, as_float(stream.extrema.low), math.nan)
        out["z_max"] = np.where(seen, as_float(stream.extrema.high), math.nan)
    if stream.counts is not None:
        out["active_fraction"] = as_float(stream.counts.active_fraction)
        out["saturated_fraction"] = as_float(stream.counts.saturated_fraction)
    return out


def _mean_columns(name: str, stream: Stream | None, width: int) -> dict[str, Any]:
    if stream is None or len(stream.moments.mean) != width:
        return {}
    return {
        f"{name}_mean": _known(stream, "mean"),
        f"{name}_var": as_float(stream.moments.variance),
    }


def _gradient_columns(name: str, stream: Stream | None, width: int) -> dict[str, Any]:
    columns = _mean_columns(name, stream, width)
    if columns and stream is not None:
        columns[f"{name}_count"] = as_float(stream.moments.count)
    return columns


def _known(stream: Stream, name: str) -> Array:
    values = as_float(getattr(stream.moments, name))
    return np.where(as_float(stream.moments.count) > 0, values, math.nan)


def _angle(dot: Array, norms: Array) -> Array:
    # atan2 keeps all digits near a right angle, where the constraint w . mu = 0 is judged.
    with np.errstate(invalid="ignore"):
        cross = np.sqrt(np.maximum(norms**2 - dot**2, 0.0))
    return np.where(norms > 0, np.arctan2(cross, dot), math.nan)
