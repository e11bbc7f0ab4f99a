"""The numbers of a prescription, from what was measured before and on a copy with the fix."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shiftscope.columns import Array, as_float, ratio
from shiftscope.errors import UsageError
from shiftscope.findings.reading import Reading, Row, known
from shiftscope.fix.attach import attach
from shiftscope.fix.candidates import Candidate
from shiftscope.fix.choose import obstacle
from shiftscope.fix.constrain import METHODS
from shiftscope.fix.prescription import GradientEffect, SiteEffect
from shiftscope.fix.unroll import Unroll, is_linear_map
from shiftscope.record import SiteRecord
from shiftscope.snapshot import Snapshot

__all__ = ["chain", "gradient_effect", "measured_gain", "score", "site_effects", "theory_gain"]

_ABSORBING = ("absorb-bias", "standardize")
_NEAR = 1e-2
_STILL = 1e-6
_NO_MEAN = ("lcw", "lcw-projection", "lcw-data", "cwn", "standardize")


def site_effects(
    model: nn.Module, before: Snapshot, after: Snapshot, fix: Candidate, treated: Sequence[str]
) -> tuple[SiteEffect, ...]:
    """Compare the shift at every site.

    Args:
        model: The model as it is.
        before: Measured on it.
        after: Measured on a copy with the fix.
        fix: The fix.
        treated: Layers it changes.

    Returns:
        One entry a site, in order of execution.
    """
    shares = {str(row["site"]): float(row["shift_share"]) for row in Reading(after).rows}
    effects = []
    for row in Reading(before).rows:
        site = str(row["site"])
        record, alone = before.records[site], (math.nan, math.nan)
        if site in treated:
            alone = _alone(model.get_submodule(site), record, fix)
        effects.append(
            SiteEffect(
                site,
                str(row["kind"]),
                float(row["shift_share"]),
                shares.get(site, math.nan),
                *alone,
                float(row["p_gamma_index"]) if row["kind"] == "linear" else math.nan,
            )
        )
    return tuple(effects)


def _alone(layer: nn.Module, record: SiteRecord, fix: Candidate) -> tuple[float, float]:
    """Shift share with this layer alone changed, and the share of the squared shift removed."""
    changed = _changed_rows(layer, record, fix)
    if changed is None or record.weights is None or fix.mean_preserving:
        return math.nan, math.nan
    rows, bias = changed
    facts = record.weights
    shift = (rows * facts.mu[facts.group]).sum(axis=1)
    between = float(np.var(shift + bias))
    left = between if fix.method in _ABSORBING else float(np.var(shift))
    removed = 1 - ratio(left, float(np.var(facts.shift)))
    sample = record.streams["a"].sample if "a" in record.streams else None
    if not isinstance(layer, nn.Linear) or sample is None or not sample.kept:
        return math.nan, removed
    within = float(np.var(as_float(sample.rows) @ rows.T, axis=0).mean())
    count = float(as_float(record.streams["z"].moments.count).max())
    corrected = max(between - within / count, 0.0)  # the scatter of measured means is no shift
    return ratio(corrected, between + within), removed


@torch.no_grad()
def _changed_rows(
    layer: nn.Module, record: SiteRecord, fix: Candidate
) -> tuple[Array, Array] | None:
    """Weights and bias of a layer under the fix, in float64, from its measured mean input."""
    facts = record.weights
    if facts is None or not facts.mu.size or not is_linear_map(layer):
        return None
    trial: Any = copy.deepcopy(layer).double()
    bias = np.nan_to_num(facts.bias)
    if fix.method in METHODS:
        if obstacle(trial, trial):
            return None
        mean: dict[str, Any] = (
            {"mean": torch.from_numpy(facts.mu)} if fix.method == "lcw-data" else {}
        )
        try:
            attach(trial, fix.method, **mean)
        except UsageError:
            return None
    if fix.method in _ABSORBING:
        bias = -facts.shift
    trial.eval()
    rows: Tensor = Unroll.of(trial).rows(trial.weight)
    return as_float(rows), bias


def gradient_effect(before: Snapshot, after: Snapshot, fix: Candidate) -> GradientEffect:
    """Compare the gain of the gradient per hidden layer, measured, by theory and on the copy.

    Args:
        before: Measured on the model.
        after: Measured on a copy with the fix.
        fix: The fix.

    Returns:
        The gains.
    """
    now, then = Reading(before), Reading(after)
    layers = now.gradient.layers if now.gradient is not None else len(now.hidden)
    gain = measured_gain(now)
    if math.isnan(gain):  # without a loss
        gain = theory_gain(now)
    return GradientEffect(
        layers, gain, theory_gain(then), measured_gain(then), _mean_field(now, fix)
    )


def theory_gain(reading: Reading) -> float:
    """Factor of the summed variance of ∇z per layer towards the input, without any gradient.

    Args:
        reading: A snapshot with moments of z and weights.

    Returns:
        Geometric mean over the hidden layers of ``φ_bw ‖w‖²``; NaN unless they form a plain chain.

    Source:
        Kutsuna, ECML-PKDD 2019, Propositions 5 and 6, with the slope at every neuron's moments.
    """
    pairs = chain(reading)
    if len(pairs) < 2:
        return math.nan
    slopes = [_slope(reading, activation) for _, activation in pairs[:-1]]
    norms = [_norm(reading, linear) for linear, _ in pairs[1:]]
    gains = [slope * norm for slope, norm in zip(slopes, norms, strict=True)]
    if not all(math.isfinite(gain) and gain > 0 for gain in gains):
        return math.nan
    return math.exp(fmean(math.log(gain) for gain in gains))


def chain(reading: Reading) -> list[tuple[Row, Row]]:
    """Pair each hidden layer with the activation that reads its z.

    Args:
        reading: The snapshot.

    Returns:
        The pairs in order of execution; empty unless layer and activation alternate all the way,
        with nothing in between that changes z.
    """
    hidden, activations = reading.hidden, reading.activations
    if len(hidden) != len(activations):
        return []
    pairs = list(zip(hidden, activations, strict=True))
    orders = [row["order"] for pair in pairs for row in pair]
    plain = orders == sorted(orders) and all(_same(h, a) for h, a in pairs)
    return pairs if plain and all(_in_catalogue(str(a["op"])) for _, a in pairs) else []


def score(effects: Sequence[SiteEffect], gradient: GradientEffect) -> tuple[float, float]:
    """Weigh shift and gradients into one number before and after; smaller is better.

    Args:
        effects: Effects at the sites.
        gradient: Effect over the depth.

    Returns:
        Decades off balance, where known, plus the mean shift share at the nonlinearities.
    """
    judged = [e for e in effects if e.kind == "activation"] or list(effects)
    shares = [_mean([e.before for e in judged]), _mean([e.after for e in judged])]
    decades = [abs(gradient.decades_before), abs(gradient.decades_after)]
    if math.isnan(decades[0]):
        decades = [0.0, 0.0]
    return shares[0] + decades[0], shares[1] + decades[1]


def measured_gain(reading: Reading) -> float:
    """Factor of the summed variance of ∇z per hidden layer towards the input, as measured.

    Args:
        reading: A snapshot.

    Returns:
        Geometric mean over the hidden layers; NaN without gradients.
    """
    profile = reading.gradient
    if profile is None or profile.layers < 2:
        return math.nan
    return float(10 ** ((profile.logs[0] - profile.logs[-1]) / (profile.layers - 1)))


def _mean_field(reading: Reading, fix: Candidate) -> float:
    """χ at unit variance, which a rescaled fix brings about; NaN for others and unknown ops."""
    from shiftscope.theory.activations import known as catalogue
    from shiftscope.theory.depth import chi

    ops = {str(row["op"]) for row in reading.activations}
    if (
        not (fix.rescale or fix.method == "standardize")
        or len(ops) != 1
        or not ops <= set(catalogue())
    ):
        return math.nan
    return chi(ops.pop(), constrained=fix.method in _NO_MEAN)


def _slope(reading: Reading, activation: Row) -> float:
    """φ_bw at the moments of every neuron; where z hardly varies, the slope at its mean."""
    from shiftscope.theory.activations import gains

    if known(activation.get("phi_bw_theory")):
        return float(activation["phi_bw_theory"])
    record = reading.snapshot.records[activation["site"]]
    moments = record.streams["z"].moments
    mean, variance = as_float(moments.mean), as_float(moments.variance)
    seen = np.isfinite(mean) & np.isfinite(variance)
    if not seen.any():
        return math.nan
    std = np.maximum(np.sqrt(variance[seen]), _STILL * np.maximum(np.abs(mean[seen]), 1.0))
    slopes = gains(record.info.op, mean[seen], std, **dict(record.info.params)).phi_bw
    return float(np.mean(slopes))


def _in_catalogue(op: str) -> bool:
    from shiftscope.theory.activations import known as catalogue

    return op in catalogue()


def _norm(reading: Reading, linear: Row) -> float:
    facts = reading.snapshot.records[linear["site"]].weights
    return float(facts.eta_map) if facts is not None else math.nan


def _same(linear: Row, activation: Row) -> bool:
    def pooled(row: Row) -> float:
        return float(row["within_var"]) + float(row["between_var"])

    return linear["neurons"] == activation["neurons"] and math.isclose(
        pooled(linear), pooled(activation), rel_tol=_NEAR
    )


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if math.isfinite(value)]
    return fmean(kept) if kept else math.nan
