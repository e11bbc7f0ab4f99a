"""What to know before following a prescription: harm that theory foresees, and premises."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np
from torch import nn

from shiftscope.columns import as_float
from shiftscope.findings.reading import Reading, known
from shiftscope.fix.candidates import Candidate
from shiftscope.fix.effects import chain, theory_gain
from shiftscope.fix.prescription import AGREEMENT, GradientEffect, SiteEffect
from shiftscope.record import SiteRecord
from shiftscope.snapshot import Snapshot

__all__ = ["assumptions", "warnings"]

_ZERO_SUM = ("lcw", "lcw-projection", "cwn")
_CONSTRAINTS = (*_ZERO_SUM, "lcw-data")
_ONCE = ("absorb-bias", "standardize")
_PRESERVING = ("lcw", "lcw-projection", "lcw-data")
_EXCESS = 1.2
_HARM = 0.3
_ODD = 1e-6
_LOW_INDEX = 0.5
_WORSE = 1.0
_ROUNDING = 1e-4
_CHANGED = 0.05


def warnings(
    model: nn.Module,
    before: Snapshot,
    fix: Candidate,
    treated: Sequence[str],
    effects: Sequence[SiteEffect],
    gradient: GradientEffect,
    output_change: float,
) -> tuple[str, ...]:
    """Say where a fix does harm, or nothing.

    Args:
        model: The model as it is.
        before: Measured on it.
        fix: The fix.
        treated: Layers it changes.
        effects: Its effects at the sites.
        gradient: Its effect over the depth.
        output_change: Relative change of the output.

    Returns:
        Sentences, the gravest first.
    """
    reading = Reading(before)
    told: list[str] = []
    if fix.method in _CONSTRAINTS:
        told += _exploding(reading, fix, gradient)
    if fix.method in _CONSTRAINTS or fix.method in _ONCE:
        told += _odd(reading)
    told += _trial(gradient)
    if fix.method in _ZERO_SUM:
        told += _off_ones(before, effects)
        told += _summed_already(before, treated)
        told += _padded(model, treated, effects)
    if fix.method in _ONCE:
        told.append(
            "The weights keep their component along the mean: the cancellation drifts as training "
            "moves the mean, and done once it did not make deep networks train (Kutsuna 2019)."
        )
    if fix.mean_preserving:
        told.append(
            "Means are kept, so the shift share of z stays: the shift moves from the weights into "
            "the biases."
        )
    told += _output(model, fix, output_change)
    return tuple(told)


def assumptions(
    before: Snapshot, after: Snapshot, fix: Candidate, gradient: GradientEffect
) -> tuple[str, ...]:
    """Say what the predicted numbers rest on, and where their premises fail.

    Args:
        before: Measured on the model.
        after: Measured on a copy with the fix.
        fix: The fix.
        gradient: Its effect over the depth.

    Returns:
        Sentences.
    """
    samples = after.manifest.get("samples", "the")
    told = [f"Shift shares are those of a copy with the fix, over {samples} samples."]
    if gradient.premises_hold:
        told.append(
            "The gain per layer is φ_bw‖w‖² at the predicted moments; it supposes gradients that "
            "do not depend on the slope and weights in random directions."
        )
        return tuple(told)
    return (*told, _why_not(Reading(before), Reading(after), gradient))


def _why_not(now: Reading, then: Reading, gradient: GradientEffect) -> str:
    if not chain(then):
        return (
            "Premise not met: sums, normalisation, branches or unknown activations stand between "
            "the layers, so no product of gains describes the depth; the gain is the trial's."
        )
    if not math.isfinite(gradient.theory):
        return "A single hidden layer, or weights of zero: there is no gain per layer to predict."
    told = (
        f"Premise not met: the gain from weights and slopes alone, {gradient.theory:.3g}, is "
        f"{gradient.theory / gradient.trial:.2g} times the trial's {gradient.trial:.3g}, beyond "
        f"{AGREEMENT:.0%}; the trial's is used."
    )
    alone = theory_gain(now)
    if math.isfinite(alone) and abs(gradient.before / alone - 1) > AGREEMENT:
        return (
            f"{told} Gradients and weights are aligned here already ({gradient.before:.3g} "
            f"measured, {alone:.3g} for random directions), as in trained networks."
        )
    return f"{told} Slopes and gradients depend on each other, or the layers are narrow."


def _exploding(reading: Reading, fix: Candidate, gradient: GradientEffect) -> Iterator[str]:
    """φ_bw/φ_fw laid bare, where nothing normalises between layer and activation."""
    from shiftscope.theory.activations import gains
    from shiftscope.theory.activations import known as catalogue

    fed = _unnormalised(reading)
    for op in dict.fromkeys(op for op in fed if op in catalogue()):
        gain = gains(op)
        excess = float(gain.phi_bw) / float(gain.phi_fw)
        if excess < _EXCESS:
            continue
        layers = fed.count(op)
        grown = layers * math.log10(excess)
        if grown < _HARM:
            continue
        yield (
            f"Nothing normalises between the layers and {op}: under {fix.method} every layer that "
            f"keeps the variance of z multiplies the gradient variance by φ_bw/φ_fw = "
            f"{excess:.3f}, {grown:.1f} decades over {layers} layers"
            f"{_as_scaled(gradient, excess)}. Leave the weights as they are, or add skip "
            "connections."
        )


def _as_scaled(gradient: GradientEffect, excess: float) -> str:
    """What the copy did, where its weights do not keep the variance."""
    if not math.isfinite(gradient.trial):
        return ""
    if gradient.trial < 1 + (excess - 1) / 2:
        return (
            f"; with the scale the weights have now it does not come to that "
            f"({gradient.trial:.3f} a layer on a copy), as the variance of z falls instead"
        )
    return f"; on a copy it is {gradient.trial:.3f} a layer"


def _unnormalised(reading: Reading) -> list[str]:
    """Activations that read the z of the linear site just before them, unchanged."""
    found = []
    last = None
    for row in reading.rows:
        if row["kind"] == "linear":
            last = row
        elif last is not None and last["neurons"] == row["neurons"]:
            pooled = [float(r["within_var"]) + float(r["between_var"]) for r in (last, row)]
            if math.isclose(*pooled, rel_tol=1e-2):
                found.append(str(row["op"]))
            last = None
    return found


def _odd(reading: Reading) -> Iterator[str]:
    from shiftscope.findings.advice import ops_of
    from shiftscope.theory.activations import gains

    ops = ops_of(reading.activations)
    if ops and all(abs(float(gains(op).mean)) < _ODD for op in ops):
        yield (
            f"{ops[0]} is odd: with mean 0 at its input it makes no mean of its own, so there is "
            "little to gain; look for the shift in biases and data."
        )


def _trial(gradient: GradientEffect) -> Iterator[str]:
    before, after = gradient.decades_before, gradient.decades_after
    if math.isfinite(before) and not math.isfinite(after):
        yield "No finite gradient came back on the copy with this fix."
    elif abs(after) > abs(before) + _WORSE:
        yield (
            f"The gradient is further off balance with it: {after:+.1f} decades over the depth, "
            f"{before:+.1f} without."
        )


def _off_ones(before: Snapshot, effects: Sequence[SiteEffect]) -> Iterator[str]:
    low = [
        e for e in effects if known(e.p_gamma_index) and e.p_gamma_index < _LOW_INDEX and e.before
    ]
    low = [e for e in low if math.isfinite(e.removed)]
    if low:
        removed = median(e.removed for e in low)
        yield (
            f"The mean input is not along 1 at {len(low)} layers ({_names(low)}; median "
            f"p_gamma_index {median(e.p_gamma_index for e in low):.2f}): there zero-sum weights "
            f"remove {max(removed, 0.0):.0%} of the squared shift that weights make. lcw-data "
            "removes all of it."
        )


def _summed_already(before: Snapshot, treated: Sequence[str]) -> Iterator[str]:
    idle = [site for site in treated if _zero_sum_inputs(before.records.get(site))]
    if idle:
        yield (
            f"The inputs of {', '.join(idle[:3])}{', …' if len(idle) > 3 else ''} sum to zero in "
            "every row already (behind a layer normalisation whose gain is uniform): zero-sum "
            "weights change nothing there."
        )


def _zero_sum_inputs(record: SiteRecord | None) -> bool:
    sample = record.streams["a"].sample if record is not None and "a" in record.streams else None
    if record is None or sample is None or record.info.op != "linear" or not sample.kept:
        return False
    rows = as_float(sample.rows)
    sizes = np.abs(rows).sum(axis=1)
    return bool(sizes.any() and np.abs(rows.sum(axis=1)).max() < _ROUNDING * sizes.max())


def _padded(
    model: nn.Module, treated: Sequence[str], effects: Sequence[SiteEffect]
) -> Iterator[str]:
    padded = [site for site in treated if _pads_zeros(model.get_submodule(site))]
    left = [e.after for e in effects if e.site in padded and math.isfinite(e.after)]
    if left:
        yield (
            f"{len(padded)} convolutions pad with zeros: their border taps see a smaller mean, so "
            f"a shift remains (predicted share up to {max(left):.2g})."
        )


def _pads_zeros(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.modules.conv._ConvNd) or layer.padding_mode != "zeros":
        return False
    padding = layer.padding
    return padding == "same" or (padding != "valid" and any(int(p) for p in padding))


def _output(model: nn.Module, fix: Candidate, change: float) -> Iterator[str]:
    if not math.isfinite(change) or change < _CHANGED:
        return
    can = fix.method in _PRESERVING and not (fix.mean_preserving or fix.rescale)
    hint = " (less with mean-preserving weights)" if can else ""
    yield (
        f"The output changes by {change:.0%} of its norm{hint}: meant for weights that are going "
        "to be trained."
    )
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if any(not m.training and m.track_running_stats for m in norms):
        yield (
            "Running statistics of batch normalisation belong to the old weights: in evaluation "
            "they do not fit until training has renewed them."
        )


def _names(effects: Sequence[SiteEffect]) -> str:
    return ", ".join(e.site for e in effects[:3]) + (", …" if len(effects) > 3 else "")
