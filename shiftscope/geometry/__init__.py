"""Angles, norms and patch means of linear maps: pure tensor functions on any device.

Tensors of any real dtype come in, float64 tensors go out; nothing waits for the device.
"""

from shiftscope.geometry.angles import (
    angle,
    angle_to_mean,
    angle_to_ones,
    eta,
    lcw_residual,
    p_gamma_index,
    row_norms,
    shift,
    xi,
)
from shiftscope.geometry.patches import PatchMap
from shiftscope.geometry.rows import RowFacts, power_of_terms, row_facts

__all__ = [
    "PatchMap",
    "RowFacts",
    "angle",
    "angle_to_mean",
    "angle_to_ones",
    "eta",
    "lcw_residual",
    "p_gamma_index",
    "power_of_terms",
    "row_facts",
    "row_norms",
    "shift",
    "xi",
]
