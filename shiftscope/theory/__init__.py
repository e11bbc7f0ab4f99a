"""The mathematics behind the measurements: gains, claims, depth, boundaries, Gram matrices.

Names are resolved on first use, so that ``import shiftscope.theory`` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Boundaries": "boundaries",
    "CLAIMS": "verify",
    "DepthMap": "depth",
    "DepthProfile": "depth",
    "FixedPoint": "depth",
    "Gains": "activations",
    "Move": "boundaries",
    "Perturbation": "hyperspherical",
    "SiteProfile": "site_profile",
    "Verification": "verify",
    "canonical": "activations",
    "chi": "depth",
    "crossing_share": "boundaries",
    "depth_map": "depth",
    "depth_scale": "depth",
    "direction": "hyperspherical",
    "effective_batch_norm": "boundaries",
    "effective_geometric": "boundaries",
    "effective_weight_norm": "boundaries",
    "fixed_point": "depth",
    "gains": "activations",
    "known": "activations",
    "locate": "boundaries",
    "metric": "hyperspherical",
    "move": "boundaries",
    "pair_mean": "pairs",
    "perturbation": "hyperspherical",
    "poincare_bounds": "activations",
    "predict_profile": "depth",
    "profile_for_sites": "site_profile",
    "spread": "boundaries",
    "stein_gap": "activations",
    "to_angles": "hyperspherical",
    "trainable_depth": "depth",
    "verifications_frame": "verify",
    "worst_rotation": "boundaries",
}
"""Public name -> the module of this package that defines it."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'shiftscope.theory' has no attribute {name!r}")
    value = getattr(import_module(f"shiftscope.theory.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
