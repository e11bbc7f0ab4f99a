"""Where an activation is flat: bounds outside which a unit counts as saturated, and who can die."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["SATURATION_MARGIN", "can_die", "saturation_bounds"]

SATURATION_MARGIN = 0.01
"""A bounded output within this share of its range from a bound counts as saturated."""

_LOGIT = math.log((1 - SATURATION_MARGIN) / SATURATION_MARGIN)
_INFINITY = math.inf

# The ops whose derivative is exactly zero on a half line below: a unit that stays there is dead.
_DYING = frozenset({"relu", "relu6", "threshold", "relu_squared", "clamp_min"})


def saturation_bounds(
    op: str, params: Mapping[str, Any] | None = None
) -> tuple[float, float] | None:
    """The interval of z inside which an activation still responds.

    Outside it a bounded activation lies within :data:`SATURATION_MARGIN` of its range from one of
    its bounds, and a clipping one has derivative zero. Unbounded sides are infinite. For ReLU
    and its kin the flat half line is not called saturation but inactivity (see :func:`can_die`).

    Args:
        op: Canonical name of the activation (``"sigmoid"``, ``"tanh"``, ...).
        params: Its parameters, where they matter (``min_val``, ``max_val``).

    Returns:
        ``(low, high)``, or None for an activation that does not saturate.
    """
    params = params or {}
    if op == "hardtanh":
        return float(params.get("min_val", -1.0)), float(params.get("max_val", 1.0))
    fixed = {
        "sigmoid": (-_LOGIT, _LOGIT),
        "tanh": (-_LOGIT / 2, _LOGIT / 2),
        "hardsigmoid": (-3.0, 3.0),
        "relu6": (-_INFINITY, 6.0),
        # x/(1+|x|) is within 1 % of its range (2) from a bound when 1 - |a| = 0.02
        "softsign": (-(1 / (2 * SATURATION_MARGIN) - 1), 1 / (2 * SATURATION_MARGIN) - 1),
        # erf(1.6449...) = 0.98
        "erf": (-1.6449763571331872, 1.6449763571331872),
    }
    return fixed.get(op)


def can_die(op: str) -> bool:
    """Whether a unit of this activation can fall silent for good (derivative exactly zero)."""
    return op in _DYING
