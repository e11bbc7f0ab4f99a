"""Gradients that die or grow on their way to the input, with their rate per layer."""

from __future__ import annotations

from shiftscope.findings.advice import backward_excess, ops_of
from shiftscope.findings.finding import Evidence, Finding
from shiftscope.findings.profile import FATAL, Profile
from shiftscope.findings.reading import Reading, Row, known
from shiftscope.findings.thresholds import Thresholds

__all__ = ["exploding_gradient", "vanishing_gradient"]

_ZERO_SUM = 1e-3
"""Largest |cos| of weight rows to 1 at which a layer counts as constrained to zero sums."""

_SOURCE_RATE = "rate: least-squares slope of log10 V(∇z) over the hidden layers"


def vanishing_gradient(reading: Reading, thresholds: Thresholds) -> Finding | None:
    """Find a gradient that shrinks towards the input.

    Args:
        reading: The snapshot.
        thresholds: Limits.

    Returns:
        One finding, with the sites in order of the smallest gradient, or None.
    """
    decay = reading.gradient
    if reading.silent:
        return _cut_off(reading, thresholds)
    if decay is None or not decay.exceeds(thresholds.decay_watch, thresholds.errors):
        return None
    limit = thresholds.total_decay
    name = "total_decay" if decay.exceeds(limit, thresholds.errors) else "decay_watch"
    return Finding(
        cause="vanishing_gradient",
        severity=_level(decay, limit, thresholds.errors),
        title=(
            f"The gradient shrinks by {decay.total:.1f} decades over {decay.layers} layers, "
            f"{decay.rate:.2f} decades a layer"
        ),
        sites=_by_gradient(decay, smallest=True, limit=thresholds.decay_watch),
        evidence=_evidence(decay),
        threshold=(name, getattr(thresholds, name)),
        source=f"{thresholds.source(name)}; {_SOURCE_RATE}",
        explanation=(
            "The first layers receive almost nothing of what the last ones do, and stay as they "
            "are while the last ones fit what they are given."
        ),
        advice=(
            "Find what takes the gradient: shift (zero-sum weights), small weights (rescale on a "
            "batch: ss.rescale_(model, batch)), saturation (smaller weights). Normalisation or "
            "residual connections keep it alive. A larger learning rate does not help."
        ),
    )


def exploding_gradient(reading: Reading, thresholds: Thresholds) -> Finding | None:
    """Find a gradient that grows towards the input.

    Args:
        reading: The snapshot.
        thresholds: Limits.

    Returns:
        One finding, with the sites in order of the largest gradient, or None.
    """
    decay = reading.gradient
    if decay is None or decay.below(thresholds.errors) >= -thresholds.growth_watch:
        return None
    limit = thresholds.total_growth
    name = "total_growth" if decay.below(thresholds.errors) < -limit else "growth_watch"
    growth = -decay.total
    return Finding(
        cause="exploding_gradient",
        severity=_growth_level(decay, limit, thresholds.errors),
        title=(
            f"The gradient grows by {growth:.1f} decades towards the input, "
            f"{-decay.rate:.2f} decades a layer"
        ),
        sites=_by_gradient(decay, smallest=False, limit=thresholds.growth_watch),
        evidence=_evidence(decay),
        threshold=(name, getattr(thresholds, name)),
        source=f"{thresholds.source(name)}; {_SOURCE_RATE}",
        explanation=(
            "A step that suits the last layers is far too large for the first ones: losses jump or "
            "become NaN unless the learning rate is very small."
        ),
        advice=_growth_advice(reading, thresholds),
    )


def _cut_off(reading: Reading, thresholds: Thresholds) -> Finding:
    silent = reading.silent
    zeros = _zero_layers_behind(reading, {str(row["site"]) for row in silent})
    return Finding(
        cause="vanishing_gradient",
        severity="watch" if zeros else "critical",
        title=f"No gradient reaches {len(silent)} of {len(reading.hidden)} hidden layers",
        sites=tuple(str(row["site"]) for row in silent),
        evidence={"sites_without_gradient": Evidence(len(silent), unit="sites")},
        threshold=("total_decay", thresholds.total_decay),
        source=thresholds.source("total_decay"),
        explanation=(
            f"Every entry of ∇z is exactly zero there: the weights right behind are all zero (at "
            f"{_some(zeros)}), and pass nothing back."
            if zeros
            else "Every entry of ∇z is exactly zero there, while later layers have a gradient: the "
            "units behind are dead or saturated, or the values fell below float resolution."
        ),
        advice=(
            "Heads and low-rank updates are often initialised with zeros: the first step ends it "
            "(see the run: ss.trial, --trial). In a trained network these layers have not moved: "
            "check that the optimizer holds them."
            if zeros
            else "Measure again in double precision (dtype=float64) to tell underflow from dead "
            "units; then treat the layer right behind the first one that is cut off."
        ),
    )


def _zero_layers_behind(reading: Reading, silent: set[str]) -> tuple[str, ...]:
    """Layers of zeros that explain every site without a gradient; none if one is not explained."""
    found: dict[str, None] = {}
    behind: Row | None = None
    for row in reversed(reading.linear):
        if str(row["site"]) not in silent:
            behind = row
        elif behind is None or behind.get("eta") != 0.0:
            return ()
        else:
            found[str(behind["site"])] = None
    return tuple(reversed(found))


def _some(sites: tuple[str, ...]) -> str:
    more = len(sites) - 1
    return sites[0] + (f" and {more} other{'s' * (more > 1)}" if more else "")


def _level(decay: Profile, limit: float, errors: float) -> str:
    if decay.exceeds(FATAL * limit, errors):
        return "critical"
    return "serious" if decay.exceeds(limit, errors) else "watch"


def _growth_level(decay: Profile, limit: float, errors: float) -> str:
    upper = decay.below(errors)
    if upper < -FATAL * limit:
        return "critical"
    return "serious" if upper < -limit else "watch"


def _by_gradient(decay: Profile, *, smallest: bool, limit: float) -> tuple[str, ...]:
    """Sites whose gradient lies beyond the limit from that of the last layer, worst first."""
    sign = 1 if smallest else -1
    last = decay.logs[-1]
    ranked = sorted(zip(decay.logs, decay.sites, strict=True), key=lambda pair: sign * pair[0])
    beyond = [site for log, site in ranked if sign * (last - log) > limit]
    return tuple(beyond) or (ranked[0][1],)


def _evidence(decay: Profile) -> dict[str, Evidence]:
    return {
        "decades_per_layer": Evidence(
            decay.rate, se=decay.rate_se, rows=decay.samples, unit="decades/layer"
        ),
        "decades_total": Evidence(
            decay.total, se=decay.total_se, rows=decay.samples, unit="decades"
        ),
        "decades_between_ends": Evidence(decay.measured, rows=decay.samples, unit="decades"),
        "layers": Evidence(decay.layers, unit="layers"),
    }


def _growth_advice(reading: Reading, thresholds: Thresholds) -> str:
    zero_sum = [r for r in reading.hidden if known(r.get("lcw_residual"))]
    constrained = zero_sum and all(r["lcw_residual"] < _ZERO_SUM for r in zero_sum)
    ops = [
        op
        for op in ops_of(reading.activations)
        if backward_excess(op) >= thresholds.backward_excess
    ]
    if constrained and ops:
        return (
            f"The weights sum to zero and {ops[0]} multiplies the gradient variance by "
            f"phi_bw/phi_fw = {backward_excess(ops[0]):.3f} a layer (Kutsuna 2019, Proposition 6): "
            "add normalisation, or release the constraint with ss.release(model)."
        )
    return (
        "Rescale the weights on a batch (ss.rescale_(model, batch)), add normalisation, or clip "
        "gradients and lower the learning rate until the first layers hold still."
    )
