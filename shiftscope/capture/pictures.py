"""Small crops of W, A and Z for the heat maps that make activation shift visible (Figure 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from shiftscope.capture.site_state import SiteState
from shiftscope.capture.weights import is_readable
from shiftscope.tally.transfer import groups_to_host

__all__ = ["pictures"]

_SITES = 12
_SIDE = 100


def pictures(states: dict[str, SiteState]) -> dict[str, dict[str, Any]]:
    """Crops of the linear sites with the largest shift shares.

    Only sites whose input rows and output rows are the same rows qualify (no convolutions), since
    the columns of A and Z must be the same samples.

    Args:
        states: The recorder's states.

    Returns:
        ``site -> {"W": [out, in], "A": [in, samples], "Z": [out, samples]}``, each side <= 100,
        float32.
    """
    fitting = {name: state for name, state in states.items() if _paired(state)}
    ranked = sorted(fitting, key=lambda name: -_share(fitting[name]))[:_SITES]
    crops = groups_to_host([_crop(fitting[name]) for name in ranked])
    return {
        name: {"W": _array(w), "A": _array(a).T, "Z": _array(z).T}
        for name, (w, a, z) in zip(ranked, crops, strict=True)
    }


def _paired(state: SiteState) -> bool:
    z, a, op = state.streams.get("z"), state.streams.get("a"), state.weight
    if z is None or a is None or op is None or op.patches is not None or op.groups != 1:
        return False
    if not is_readable(op.weight):
        return False
    return z.sample is not None and a.sample is not None and state.seen["z"] == state.seen["a"]


def _share(state: SiteState) -> float:
    share = float(state.streams["z"].moments.pooled().shift_share)
    return share if np.isfinite(share) else -1.0


def _crop(state: SiteState) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the weights, of the input and of the output."""
    z, a, op = state.streams["z"].sample, state.streams["a"].sample, state.weight
    if z is None or a is None or op is None:  # never, where they are paired
        return torch.empty(0, 0), torch.empty(0, 0), torch.empty(0, 0)
    rows = min(_SIDE, z.rows.shape[0], a.rows.shape[0])
    weights = op.rows(op.weight)[:_SIDE, :_SIDE].detach()
    return weights, a.rows[:rows, :_SIDE], z.rows[:rows, :_SIDE]


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    # A copy: the weights train on.
    values: np.ndarray[Any, Any] = np.array(tensor.float().numpy())
    return values
