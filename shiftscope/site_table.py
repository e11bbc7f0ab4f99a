"""One row a site: shares, gains measured and predicted, and what must be known about them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from shiftscope.columns import Array, as_float, decades, group_of_rows, mean_variance, ratio
from shiftscope.record import SiteRecord, Stream, WeightFacts
from shiftscope.theory.saturation import can_die

__all__ = ["SAMPLE_COLUMNS", "SITE_COLUMNS", "site_row"]

SITE_COLUMNS = (
    *("site", "kind", "op", "module", "order", "calls", "neurons", "fan_in", "count", "samples"),
    *("nonfinite", "shift_share", "shift_share_se", "shift_share_raw", "within_var", "between_var"),
    *("z_mean", "z_std", "eta", "eta_measured", "eta_pooled", "xi", "xi_measured"),
    *("phi_fw", "phi_fw_theory", "phi_bw", "phi_bw_theory", "grad_z_var", "log10_grad_z_var"),
    *("grad_a_var", "log10_grad_a_var", "gamma", "mu_norm", "p_gamma_index", "lcw_residual"),
    *("dead", "saturated", "resolution_lost", "sample_rows", "notes"),
)
"""Columns of ``snapshot.sites``, in order; those that do not apply to a site are NaN."""

SAMPLE_COLUMNS = ("shift_share_se", "sample_rows")
"""Columns that come from the row sample; a file with a thinned sample keeps their values."""

_JACKKNIFE_GROUPS = 20
_OVER_NEURONS = {
    "z": (
        *("shift_share", "shift_share_se", "shift_share_raw", "within_var", "between_var"),
        *("z_mean", "z_std", "eta_measured", "eta_pooled", "phi_fw"),
    ),
    "a": ("eta_measured", "eta_pooled", "phi_fw"),
    "grad_z": ("grad_z_var", "log10_grad_z_var", "xi_measured", "phi_bw"),
    "grad_a": ("grad_a_var", "log10_grad_a_var", "xi_measured", "phi_bw"),
}
"""Stream -> columns that are taken over its neurons."""


def site_row(record: SiteRecord) -> dict[str, Any]:
    """All columns of one site.

    Args:
        record: The merged record of the site.

    Returns:
        Column name to value; absent columns are NaN in the frame.
    """
    info = record.info
    row: dict[str, Any] = {
        "site": info.site,
        "kind": info.kind,
        "op": info.op,
        "module": info.module,
        "order": info.order,
        "calls": record.calls,
        "neurons": info.neurons,
        "fan_in": info.fan_in,
        "samples": record.samples,
    }
    notes = list(record.notes)
    row |= _shift_columns(record, notes) | _gradient_columns(record, notes)
    if info.kind == "linear":
        row |= _linear_columns(record, notes)
    else:
        row |= _activation_columns(record, notes)
    row |= record.kept
    row |= _unknown(record, notes)
    row["notes"] = "; ".join(dict.fromkeys(notes))
    return row


def _unknown(record: SiteRecord, notes: list[str]) -> dict[str, Any]:
    """A few neurons do not speak for a site most of whose neurons have no finite value."""
    row: dict[str, Any] = {}
    for name, columns in _OVER_NEURONS.items():
        stream = record.streams.get(name)
        if stream is None:
            continue
        lost = as_float(stream.moments.count) == 0
        if lost.sum() * 2 > lost.size:
            row |= dict.fromkeys(columns, math.nan)
            notes.append(
                f"{int(lost.sum())} of {lost.size} neurons have no finite value in {name}: "
                "nothing is said of the site as a whole"
            )
    return row


def _shift_columns(record: SiteRecord, notes: list[str]) -> dict[str, Any]:
    stream = record.streams.get("z")
    if stream is None:
        notes.append("z was not measured")
        return {"count": 0}
    count = as_float(stream.moments.count)
    pooled = stream.moments.pooled()
    row: dict[str, Any] = {
        "count": int(count.max()) if count.size else 0,
        "within_var": float(pooled.within),
        "between_var": float(pooled.between),
        "shift_share": float(pooled.shift_share),
        "shift_share_raw": float(pooled.shift_share_raw),
        "shift_share_se": _share_error(stream, record.samples),
        "z_mean": _mean_of_means(stream),
        "z_std": math.sqrt(pooled.within) if pooled.within >= 0 else math.nan,
    }
    row |= _resolution(stream, notes) | _quality(record, stream, notes)
    return row


def _mean_of_means(stream: Stream) -> float:
    seen = as_float(stream.moments.count) > 0
    return float(as_float(stream.moments.mean)[seen].mean()) if seen.any() else math.nan


def _resolution(stream: Stream, notes: list[str]) -> dict[str, Any]:
    count = as_float(stream.moments.count)
    if count.size and count.max() == 1:
        notes.append("one row only: a variance takes two")
        return {"resolution_lost": 0.0}
    lost = float(np.mean(np.asarray(stream.moments.below_resolution, dtype=bool)))
    if lost > 0:
        notes.append(
            f"variance of z below float resolution at {lost:.0%} of the neurons (rounding noise; "
            "measure with dtype=float64)"
        )
    return {"resolution_lost": lost}


def _quality(record: SiteRecord, stream: Stream, notes: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"nonfinite": 0}
    for name, tallies in record.streams.items():
        bad = int(as_float(tallies.counts.nonfinite).sum()) if tallies.counts is not None else 0
        row["nonfinite"] += bad
        if bad:
            notes.append(f"{bad} non-finite values in {name}, left out of its statistics")
    if stream.sample is not None:
        row["sample_rows"] = int(stream.sample.rows.shape[0])
    return row


def _gradient_columns(record: SiteRecord, notes: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in ("grad_z", "grad_a"):
        stream = record.streams.get(name)
        variance = mean_variance(stream)
        row |= {f"{name}_var": variance, f"log10_{name}_var": decades(variance)}
        if stream is not None and variance == 0:
            notes.append(f"every {name} is zero or below float resolution")
    return row


def _linear_columns(record: SiteRecord, notes: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if record.weights is not None:
        row |= _weight_columns(record.weights)
    z, a = record.streams.get("z"), record.streams.get("a")
    if z is None or a is None:
        return row
    inputs, pooled = mean_variance(a), z.moments.pooled()
    usable = _usable(z) and _usable(a)
    if usable:
        row["eta_measured"] = ratio(mean_variance(z), inputs)
        row["eta_pooled"] = ratio(float(pooled.total), inputs)
    row["xi_measured"] = _paired_gain(record, "grad_a", "grad_z")
    return row


def _weight_columns(weights: WeightFacts) -> dict[str, Any]:
    norm = np.sqrt(weights.norm2)
    alive = norm > 0
    fan_in = weights.mu.shape[1] if weights.mu.size else 0
    row = {"eta": float(weights.norm2.mean()), "xi": weights.xi}
    row["lcw_residual"] = _lcw_residual(weights, norm, alive)
    if fan_in and np.isfinite(weights.mu).all():
        square = float((weights.mu**2).sum())
        along = float((weights.mu.sum(axis=1) ** 2).sum()) / fan_in
        row |= {
            "gamma": float(weights.mu.mean()),
            "mu_norm": math.sqrt(square / len(weights.mu)),
            "p_gamma_index": ratio(along, square),
        }
    return row


def _lcw_residual(weights: WeightFacts, norm: Array, alive: Any) -> float:
    # cos(theta_1) = (w . 1) / (|w| sqrt(m)): the largest one is the residual of the constraint
    if not alive.any():
        return math.nan
    return float(np.abs(np.cos(weights.theta_ones[alive])).max())


def _activation_columns(record: SiteRecord, notes: list[str]) -> dict[str, Any]:
    z, a = record.streams.get("z"), record.streams.get("a")
    row: dict[str, Any] = {}
    if z is None:
        return row
    if z.counts is not None:
        if can_die(record.info.op):
            share = as_float(z.counts.active_fraction)  # NaN where no value was finite
            row["dead"] = int((share == 0).sum()) if np.isfinite(share).any() else math.nan
        row["saturated"] = _mean_known(as_float(z.counts.saturated_fraction))
    if a is not None and record.info.elementwise and _usable(z):
        row["phi_fw"] = ratio(mean_variance(a), mean_variance(z))
    if record.info.elementwise:
        row["phi_bw"] = _paired_gain(record, "grad_z", "grad_a")
        row |= _theory(record, z, notes)
    return row


def _theory(record: SiteRecord, z: Stream, notes: list[str]) -> dict[str, Any]:
    from shiftscope.theory.activations import gains, known

    variance = as_float(z.moments.variance)
    usable = np.isfinite(variance) & (variance > 0)
    if record.info.op not in known() or not usable.any() or not _usable(z):
        return {}
    mean, std = as_float(z.moments.mean)[usable], np.sqrt(variance[usable])
    predicted = gains(record.info.op, mean, std, **dict(record.info.params))
    return {
        "phi_fw_theory": ratio(
            float(np.mean(predicted.variance)), float(np.mean(variance[usable]))
        ),
        "phi_bw_theory": float(np.mean(predicted.phi_bw)),
    }


def _paired_gain(record: SiteRecord, top: str, bottom: str) -> float:
    pairs = record.streams.get("grad_z_paired", record.streams.get("grad_z"))
    upper, lower = (pairs if n == "grad_z" else record.streams.get(n) for n in (top, bottom))
    if upper is None or lower is None or not record.paired:
        return math.nan
    return ratio(mean_variance(upper), mean_variance(lower))


def _usable(stream: Stream) -> bool:
    return bool(np.mean(np.asarray(stream.moments.below_resolution, dtype=bool)) < 0.5)


def _mean_known(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def _share_error(stream: Stream, samples: int) -> float:
    """Standard error of the shift share: a grouped jackknife over sampled rows.

    Rows are resampled with all their neurons, so that the correlation between neurons counts; the
    result is scaled to the number of samples, not of rows, since positions of one image or tokens
    of one sequence are not independent.
    """
    if stream.sample is None or samples < 2:
        return math.nan
    rows = as_float(stream.sample.rows)
    count = len(rows)
    groups = min(_JACKKNIFE_GROUPS, count)
    if groups < 2 or not np.isfinite(rows).all():
        return math.nan
    blocks = group_of_rows(count, groups)
    leave_one_out = _shares_without(rows, blocks)
    spread = leave_one_out - leave_one_out.mean()
    return math.sqrt((groups - 1) / groups * float(spread @ spread) * count / samples)


def _shares_without(rows: Array, blocks: Any) -> Array:
    centred = rows - rows.mean(axis=0)
    offset = rows.mean(axis=0)
    total, square = centred.sum(axis=0), (centred**2).sum(axis=0)
    shares = []
    for block in blocks:
        part = centred[block]
        left = len(rows) - len(part)
        mean = (total - part.sum(axis=0)) / left
        within = np.maximum((square - (part**2).sum(axis=0)) / left - mean**2, 0.0).mean()
        between = float(np.var(mean + offset)) - within / left
        shares.append(ratio(max(between, 0.0), max(between, 0.0) + within))
    return np.nan_to_num(np.asarray(shares, dtype=np.float64), nan=0.0)
