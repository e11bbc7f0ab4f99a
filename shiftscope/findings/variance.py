"""Variance over the depth: samples that become indistinguishable, weights of the wrong scale."""

from __future__ import annotations

from statistics import fmean

from shiftscope.findings.advice import kills_gradient, ops_of
from shiftscope.findings.finding import Evidence, Finding
from shiftscope.findings.profile import FATAL, Profile
from shiftscope.findings.reading import Reading
from shiftscope.findings.thresholds import Thresholds

__all__ = ["variance_collapse", "weight_scale"]


def variance_collapse(reading: Reading, thresholds: Thresholds) -> Finding | None:
    """Find a variance within neurons that falls over the depth.

    Args:
        reading: The snapshot.
        thresholds: Limits.

    Returns:
        One finding, with the sites in order of the smallest variance, or None.
    """
    within = reading.within
    if within is None or not within.exceeds(thresholds.collapse_watch, thresholds.errors):
        return None
    severe = within.exceeds(thresholds.collapse, thresholds.errors)
    name = "collapse" if severe else "collapse_watch"
    return Finding(
        cause="variance_collapse",
        severity="serious" if severe else "watch",
        title=(
            f"The response to the samples fades by {within.total:.1f} decades of variance over "
            f"{within.layers} layers"
        ),
        sites=_fallen(within, thresholds.collapse_watch),
        evidence=_evidence(within),
        threshold=(name, getattr(thresholds, name)),
        source=thresholds.source(name),
        explanation=(
            "In the last layers a neuron gives nearly the same value for every sample, so that "
            "samples can hardly be told apart there (Kutsuna 2019, Figure 3)."
        ),
        advice=(
            "If shift is found too, treat that first. Otherwise the weights are too small for the "
            "activation: rescale them on a batch, ss.rescale_(model, batch)."
        ),
    )


def weight_scale(reading: Reading, thresholds: Thresholds) -> Finding | None:
    """Find a pooled variance of z that grows or falls over the depth: weights of the wrong scale.

    Shift moves variance from within neurons to between them and leaves the pooled one; only the
    scale of the weights changes that. Where biases hold the pooled variance up, weights that are
    too small still show in the gradient: each layer multiplies it by eta times phi_bw.

    Args:
        reading: The snapshot.
        thresholds: Limits.

    Returns:
        One finding, or None.
    """
    pooled = reading.pooled
    if pooled is None or not _off_scale(pooled, thresholds):
        return _too_small(reading, thresholds)
    size, slack = abs(pooled.total), thresholds.errors * pooled.total_se
    small = _too_small(reading, thresholds)
    if small is not None and size - slack <= thresholds.weight_scale:
        return small
    severe = size - slack > thresholds.weight_scale
    name = "weight_scale" if severe else "weight_scale_watch"
    verb = "falls" if pooled.total > 0 else "grows"
    side = "small" if pooled.total > 0 else "large"
    return Finding(
        cause="weight_scale",
        severity="serious" if severe else "watch",
        title=f"The scale of z {verb} by {size:.1f} decades of variance over the depth",
        sites=_fallen(pooled, thresholds.weight_scale_watch),
        evidence=_evidence(pooled),
        threshold=(name, getattr(thresholds, name)),
        source=thresholds.source(name),
        explanation=(
            f"Each layer multiplies the variance by the same factor away from one: the weights are "
            f"too {side} for the activation (or the input is scaled wrongly)."
        ),
        advice=(
            "Rescale every layer to unit variance on one batch (Kutsuna 2019, Section 4.3): "
            "ss.rescale_(model, batch); and check the normalisation of the input."
        ),
    )


def _off_scale(pooled: Profile, thresholds: Thresholds) -> bool:
    slack = thresholds.errors * pooled.total_se
    return abs(pooled.total) - slack > thresholds.weight_scale_watch


def _too_small(reading: Reading, thresholds: Thresholds) -> Finding | None:
    """Weights whose squared norms times phi_bw let the gradient die, where shift is not the cause.

    In trained networks gradients and weights are aligned and the product is too dark; so the
    measured gradient must agree, or, where there is none, the forward signal must fade too.
    """
    limit, errors = thresholds.total_decay, thresholds.errors
    predicted, seen = reading.predicted_gradient, reading.gradient
    if predicted is None or not predicted.exceeds(limit, errors):
        return None
    if any(kills_gradient(op) for op in ops_of(reading.activations)):
        return None
    fading = reading.within is not None and reading.within.exceeds(
        thresholds.collapse_watch, errors
    )
    if not (seen.exceeds(limit, errors) if seen is not None else fading):
        return None
    eta = fmean(row["eta"] for row in reading.hidden)
    needed = 1 / fmean(row["phi_bw_theory"] for row in reading.activations)
    return Finding(
        cause="weight_scale",
        severity="critical"
        if seen is not None and seen.exceeds(FATAL * limit, errors)
        else "serious",
        title=(
            f"The weights are too small: squared row norms average {eta:.2g}, and {needed:.2g} "
            "would keep the gradient"
        ),
        sites=_smallest_gain(reading),
        evidence={
            "eta": Evidence(eta, unit="mean squared row norm"),
            "eta_that_keeps_the_gradient": Evidence(needed, unit="1/phi_bw"),
            "predicted_decay": Evidence(
                predicted.total, se=predicted.total_se, rows=predicted.samples, unit="decades"
            ),
        },
        threshold=("total_decay", limit),
        source=thresholds.source("total_decay"),
        explanation=(
            "Each layer multiplies the gradient variance by eta times phi_bw; here that is well "
            "below one, and the product over the depth accounts for the decay."
        ),
        advice=(
            "Start from larger weights: an initialisation made for the activation (He et al. 2015 "
            "for ReLU), or unit variance on one batch, ss.rescale_(model, batch)."
        ),
    )


def _smallest_gain(reading: Reading) -> tuple[str, ...]:
    rows = sorted(reading.hidden, key=lambda row: (row["eta"], row["order"]))
    return tuple(str(row["site"]) for row in rows)


def _fallen(profile: Profile, limit: float) -> tuple[str, ...]:
    sign = 1.0 if profile.total > 0 else -1.0
    first = profile.logs[0]
    ranked = sorted(zip(profile.logs, profile.sites, strict=True), key=lambda pair: sign * pair[0])
    beyond = [site for log, site in ranked if sign * (first - log) > limit]
    return tuple(beyond) or (ranked[0][1],)


def _evidence(profile: Profile) -> dict[str, Evidence]:
    return {
        "decades_per_layer": Evidence(
            -profile.rate, se=profile.rate_se, rows=profile.samples, unit="decades/layer"
        ),
        "decades_total": Evidence(
            -profile.total, se=profile.total_se, rows=profile.samples, unit="decades"
        ),
        "layers": Evidence(profile.layers, unit="layers"),
    }
