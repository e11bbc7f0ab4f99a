"""Variance over the depth: samples that become indistinguishable, weights of the wrong scale."""

from __future__ import annotations

from shiftscope.findings.finding import Evidence, Finding
from shiftscope.findings.profile import Profile
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
    scale of the weights changes that.

    Args:
        reading: The snapshot.
        thresholds: Limits.

    Returns:
        One finding, or None.
    """
    pooled = reading.pooled
    if pooled is None:
        return None
    size, slack = abs(pooled.total), thresholds.errors * pooled.total_se
    if size - slack <= thresholds.weight_scale_watch:
        return None
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
