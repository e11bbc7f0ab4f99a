"""Drawings of a snapshot: tables in, panels on matplotlib axes out; no statistics, no global state.

Every function takes a snapshot or the one of its frames it reads, draws on the axes it is given or
on a figure of its own, and returns them. Names are resolved on first use, so that
``import shiftscope.draw`` loads no plotting library.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "COLORS": "palette",
    "NamedFigure": "named_figure",
    "SEVERITY_COLORS": "palette",
    "activation_gains": "predicted",
    "angle_histogram": "angles",
    "angle_histograms": "angles",
    "boundary_lines": "boundaries",
    "boundary_moves": "boundaries",
    "boundary_points": "boundaries",
    "boxes_by_layer": "layers",
    "claim_estimates": "claims",
    "claim_figure": "claims",
    "claim_figures": "claims",
    "claim_scores": "claims",
    "comparison_profile": "comparison",
    "depth_profile": "profile",
    "drawing": "style",
    "evolution": "depth_time",
    "evolution_map": "depth_time",
    "figures": "gallery",
    "gain_profile": "profile",
    "gradient_boxes": "layers",
    "gradient_profile": "profile",
    "gradients_over_depth": "depth",
    "heat_map": "heatmaps",
    "layer_boxes": "layers",
    "neuron_boxes": "boxes",
    "pooled_gradient_boxes": "layers",
    "preactivation_boxes": "layers",
    "predicted_against_measured": "predicted",
    "predicted_shift": "predicted",
    "profile_over_depth": "depth",
    "quantile_course": "curves",
    "run_curves": "curves",
    "run_figures": "run_gallery",
    "save_png": "output",
    "shares_over_depth": "depth",
    "shift_profile": "profile",
    "site_curves": "curves",
    "stripes": "heatmaps",
    "to_png_bytes": "output",
    "unit_profile": "profile",
    "variance_profile": "profile",
}
"""Public name -> the module of this package that defines it."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'shiftscope.draw' has no attribute {name!r}")
    value = getattr(import_module(f"shiftscope.draw.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
