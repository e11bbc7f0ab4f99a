"""Condition of the Gram matrix of gradients of one layer, as measured inputs make it."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from shiftscope.columns import as_float
from shiftscope.errors import ShiftscopeError
from shiftscope.findings.reading import Reading
from shiftscope.fix.effects import chain
from shiftscope.snapshot import Snapshot
from shiftscope.theory.gram import layer_g_matrix

__all__ = ["gram_condition"]

_ROWS = 128
_ONES = ("lcw", "lcw-projection", "cwn")


def gram_condition(model: nn.Module, snapshot: Snapshot, method: str = "") -> tuple[float, str]:
    """Condition number of the G-matrix of the last hidden layer on sampled rows of its inputs.

    Args:
        model: The model that was measured.
        snapshot: What was measured.
        method: Constraint the layer obeys, whose direction gradients cannot take.

    Returns:
        Largest over smallest eigenvalue of up to 128 rows, and nothing; or NaN and the reason,
        unless the hidden layers form a plain chain that ends in a fully connected layer whose
        inputs were sampled.

    Source:
        Panigrahi, Shetty and Goyal, ICLR 2020 (arXiv 1908.05660).
    """
    pairs = chain(Reading(snapshot))
    if not pairs:
        return math.nan, "the hidden layers form no plain chain"
    linear, activation = pairs[-1]
    record = snapshot.records[linear["site"]]
    layer: Any = dict(model.named_modules()).get(str(linear["module"]))
    sample = record.streams["a"].sample if "a" in record.streams else None
    if not isinstance(layer, nn.Linear):
        return math.nan, f"the last hidden layer is {type(layer).__name__}, not fully connected"
    if sample is None:
        return math.nan, "no rows of its inputs were kept"
    rows = as_float(sample.thin(_ROWS).rows)
    bias = None if layer.bias is None else as_float(layer.bias)
    without: Any = "ones" if method in _ONES else rows.mean(0) if method == "lcw-data" else ()
    try:
        matrix = layer_g_matrix(
            rows, as_float(layer.weight), activation["op"], bias, without=without
        )
        condition = float(matrix.spectrum().condition)
    except ShiftscopeError as error:
        return math.nan, error.reason
    if math.isnan(condition):
        return condition, "its smallest eigenvalue is not told from rounding"
    return condition, ""
