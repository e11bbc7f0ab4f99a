"""The mathematics behind the measurements: gains, claims, depth, boundaries, Gram matrices.

Names are resolved on first use, so that ``import shiftscope.theory`` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Activity": "dying",
    "Boundaries": "boundaries",
    "CLAIMS": "verification",
    "DepthMap": "depth",
    "DepthProfile": "depth_profile",
    "FixedPoint": "depth",
    "GMatrix": "gram",
    "Gains": "activations",
    "IidMoments": "linear",
    "Isotropy": "linear",
    "LinearMoments": "linear",
    "Move": "boundaries",
    "Perturbation": "hyperspherical",
    "Quadratic": "quadratic",
    "Share": "dying",
    "SiteProfile": "site_profile",
    "Spectrum": "spectrum",
    "Verification": "verification",
    "activation_scale": "gram",
    "activity": "dying",
    "canonical": "activations",
    "chi": "depth",
    "crossing_share": "boundaries",
    "depth_map": "depth",
    "depth_scale": "depth_profile",
    "direction": "hyperspherical",
    "effective_batch_norm": "boundaries",
    "effective_geometric": "boundaries",
    "effective_weight_norm": "boundaries",
    "exceeds": "spectrum",
    "fixed_point": "depth",
    "g_matrix": "gram",
    "gains": "activations",
    "hermite_coefficients": "hermite",
    "hermite_gershgorin": "gram",
    "iid_moments": "linear",
    "isotropy": "linear",
    "jacobian_g_matrix": "jacobian_gram",
    "known": "activations",
    "layer_dead_probability": "dying",
    "layer_g_matrix": "gram",
    "linear_moments": "linear",
    "locate": "boundaries",
    "low_activity_probability": "dying",
    "metric": "hyperspherical",
    "minimal_pair_angle": "gram_rows",
    "move": "boundaries",
    "pair_dead_probability": "dying",
    "pair_mean": "pairs",
    "perturbation": "hyperspherical",
    "poincare_bounds": "activations",
    "predict_profile": "depth_profile",
    "premise_table": "premises",
    "profile_for_sites": "site_profile",
    "quadratic_fit": "quadratic",
    "rule_of_three": "dying",
    "share_bounds": "dying",
    "shift_dead_probability": "dying",
    "spread": "boundaries",
    "stein_gap": "activations",
    "to_angles": "hyperspherical",
    "trainable_depth": "depth_profile",
    "verifications_frame": "verification",
    "verify": "verification",
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
