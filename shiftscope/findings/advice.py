"""What to do about shift and gradients, as the theory of the activations at hand has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from shiftscope.findings.reading import Reading, Row, known
from shiftscope.findings.thresholds import Thresholds

__all__ = ["backward_excess", "feeding", "kills_gradient", "ops_of", "shift_advice"]

_ODD = 1e-6
_KEEPS_GRADIENT = 0.5

_CONSTRAIN = (
    "Constrain each weight row to sum to zero and rescale once on a batch: ss.constrain(model, "
    '"lcw"); ss.rescale_(model, batch). Batch normalisation before the activation removes the '
    "shift as well, and the two work together."
)
_DATA_AWARE = (
    "The mean input is not along 1 here (p_gamma_index {index:.2f}): plain zero-sum weights remove "
    "only about {index:.0%} of the shift. Use the data-aware constraint, "
    'ss.constrain(model, "lcw-data").'
)
_EXCESS = (
    "Careful with {op}: without normalisation, zero-sum weights multiply the gradient variance by "
    "phi_bw/phi_fw = {excess:.3f} a layer towards the input ({decades:.1f} decades over these "
    "{layers} layers). Leave the weights unconstrained, or add skip connections."
)
_ODD_ADVICE = (
    "{op} is odd and creates no shift of its own (E f(z) = 0 at mean 0), so zero-sum weights gain "
    "nothing: look for it in the biases and in the data, and centre those."
)


def shift_advice(reading: Reading, rows: Sequence[Row], thresholds: Thresholds) -> str:
    """Advice against activation shift at the given sites.

    Args:
        reading: The snapshot.
        rows: The sites with shift (activations, or linear sites where no activation was seen).
        thresholds: Limits for the two warnings.

    Returns:
        A few sentences.
    """
    ops = ops_of(rows)
    odd = [op for op in ops if _mean(op) < _ODD]
    if ops and len(odd) == len(ops):
        return _ODD_ADVICE.format(op=odd[0])
    index = _index(reading, rows)
    parts = [_DATA_AWARE.format(index=index) if index < thresholds.lcw_index else _CONSTRAIN]
    for op in ops:
        excess = backward_excess(op)
        if excess >= thresholds.backward_excess:
            layers = len(rows)
            grown = layers * math.log10(excess)
            parts.append(_EXCESS.format(op=op, excess=excess, decades=grown, layers=layers))
    return " ".join(parts)


def ops_of(rows: Sequence[Row]) -> list[str]:
    """The different activations among the sites whose gains are known to the theory."""
    from shiftscope.theory.activations import known as catalogue

    ops = dict.fromkeys(str(row["op"]) for row in rows if row["kind"] == "activation")
    return [op for op in ops if op in catalogue()]


def backward_excess(op: str) -> float:
    """phi_bw/phi_fw of an activation at N(0, 1): what zero-sum weights cost per layer."""
    from shiftscope.theory.activations import gains

    gain = gains(op)
    return float(gain.phi_bw) / float(gain.phi_fw)


def feeding(reading: Reading, row: Row) -> Row | None:
    """The linear site that produced what enters an activation (the site itself if linear)."""
    if row["kind"] == "linear":
        return row
    before = [linear for linear in reading.linear if linear["order"] < row["order"]]
    return before[-1] if before else None


def kills_gradient(op: str) -> bool:
    """Whether standard weights lose the gradient to shift under this activation.

    At unit pooled variance each layer multiplies V(∇z) by E f'^2 / E f^2: 0.15 for the sigmoid,
    whose mean eats most of E f^2, but 1 for ReLU and above 1 for odd activations (Kutsuna 2019,
    Section 4.2; exact for independent weights of infinite width).
    """
    from shiftscope.theory.activations import gains

    gain = gains(op)
    second = float(gain.variance) + float(gain.mean) ** 2
    return float(gain.phi_bw) < _KEEPS_GRADIENT * second


def _mean(op: str) -> float:
    from shiftscope.theory.activations import gains

    return abs(float(gains(op).mean))


def _index(reading: Reading, rows: Sequence[Row]) -> float:
    fed = [feeding(reading, row) for row in rows]
    values = [row["p_gamma_index"] for row in fed if row and known(row.get("p_gamma_index"))]
    return median(values) if values else 1.0
