"""Fixes that change the architecture: told in words, with the gain that theory gives them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from shiftscope.findings import Finding
from shiftscope.findings.reading import Reading
from shiftscope.fix.effects import measured_gain
from shiftscope.fix.prescription import GradientEffect, Prescription
from shiftscope.snapshot import Snapshot

__all__ = ["architecture_advice"]

_SHIFT = ("activation_shift", "vanishing_gradient", "variance_collapse", "not_learning")
_PREMISE = (
    "The gain is that of the mean-field theory: random weights, unit variance of z, infinite width."
)
_NORMALISE = (
    "Batch normalisation before each {op}: every neuron then enters it with mean 0 and variance 1, "
    "so no shift is left in training mode; in evaluation the running statistics leave the "
    "difference to the data at hand."
)
_ODD = (
    "An odd activation, such as tanh in place of {op}: E f(z) = 0 at mean 0, so layers make no "
    "shift of their own; tanh saturates as {op} does."
)
_RESIDUAL = (
    "Residual connections around pairs of layers: the gradient also takes the way past them. The "
    "shift of a sum is the weighted mean of its blocks' shares; it does not vanish by itself."
)


def architecture_advice(snapshot: Snapshot, findings: Sequence[Finding]) -> list[Prescription]:
    """List changes of the architecture against shift and vanishing gradients.

    Args:
        snapshot: What was measured.
        findings: What was found.

    Returns:
        Prescriptions without code; empty where no finding of that kind is there, or where the
        activation is not known to the theory.
    """
    causes = tuple(f.cause for f in findings if f.cause in _SHIFT and f.severity != "info")
    reading = Reading(snapshot)
    op = _main_activation(reading)
    if not causes or not op:
        return []
    from shiftscope.theory.depth import chi

    told = [(_NORMALISE, chi(op, constrained=True))]
    if chi(op) < 1 - 1e-6:
        told.append((_ODD, chi("tanh")))
    if len(reading.hidden) > 4:
        told.append((_RESIDUAL, math.nan))
    return [_advice(reading, causes, text.format(op=op), gain) for text, gain in told]


def _advice(reading: Reading, causes: tuple[str, ...], text: str, gain: float) -> Prescription:
    layers = len(reading.hidden)
    effect = GradientEffect(layers, measured_gain(reading), gain, math.nan, gain)
    premises = (_PREMISE,) if math.isfinite(gain) else ()
    return Prescription(None, causes, (), (), effect, assumptions=premises, advice=text)


def _main_activation(reading: Reading) -> str:
    from shiftscope.theory.activations import known

    ops = Counter(str(row["op"]) for row in reading.activations if row["op"] in known())
    return ops.most_common(1)[0][0] if ops else ""
