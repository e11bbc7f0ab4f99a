"""Small crops of W, A and Z for the heat maps that make activation shift visible (Figure 1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from shiftscope.capture.recorder import SiteState
from shiftscope.capture.weights import is_readable

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
    return {name: _crop(fitting[name]) for name in ranked}


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


def _crop(state: SiteState) -> dict[str, Any]:
    z, a, op = state.streams["z"].sample, state.streams["a"].sample, state.weight
    if z is None or a is None or op is None:
        return {}
    rows = min(_SIDE, z.rows.shape[0], a.rows.shape[0])
    return {
        "W": _array(op.rows(op.weight)[:_SIDE, :_SIDE]),
        "A": _array(a.rows[:rows, :_SIDE]).T,
        "Z": _array(z.rows[:rows, :_SIDE]).T,
    }


def _array(tensor: Any) -> np.ndarray[Any, Any]:
    # A copy: the weights train on.
    values: np.ndarray[Any, Any] = np.array(tensor.detach().float().cpu().numpy())
    return values
