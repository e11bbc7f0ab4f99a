"""Whether the parts of a site go together that a file holds: a foreign hand may have changed it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shiftscope.columns import QUANTILES

__all__ = ["Arrays", "vet"]

_INFO: dict[str, type] = {"site": str, "kind": str, "op": str, "module": str, "params": dict}
_INFO |= {"neurons": int, "fan_in": int, "order": int, "elementwise": bool}
_SCALARS = ("moments.eps", "sample.size", "sample.seed", "sample.seen", "rows", "xi", "eta_map")
_WHOLE = (*(f"counts.{name}" for name in ("count", "active", "saturated", "nonfinite")), "rows")
_WHOLE += ("moments.count", "sample.priority", "sample.size", "sample.seed", "sample.seen", "group")

Arrays = dict[str, npt.NDArray[Any]]


def vet(info: Mapping[str, Any], arrays: Arrays) -> None:
    """Refuse a site whose parts do not go together, before a table or a figure meets them."""
    for name, kind in _INFO.items():
        if type(info[name]) is not kind:
            raise ValueError(f"{name!r} of a site is {info[name]!r:.40}")
    for key, array in arrays.items():
        part, name = key.split("/", 1)
        kinds = "iu" if name in _WHOLE else "fiu"
        if array.dtype.kind not in kinds or not _fits(part, name, info["neurons"], arrays):
            raise ValueError(f"array {key!r} of site {info['site']!r} does not fit the others")
        if name.startswith("counts.") and np.any(array < 0):
            raise ValueError(f"array {key!r} of site {info['site']!r} counts less than nothing")
    groups, mu = arrays.get("weights/group"), arrays.get("weights/mu")
    if groups is None or mu is None or not mu.size:
        return
    if np.any(groups < 0) or np.any(groups >= len(mu)):
        raise ValueError(f"the groups of site {info['site']!r} do not fit its inputs")


def _fits(part: str, name: str, neurons: int, arrays: Arrays) -> bool:
    """Whether an array of a site has the shape that its name and the others ask for."""
    array = arrays[f"{part}/{name}"]
    if part == "picture" or (name == "z_mean" and array.shape == (0,)):
        return True
    if name == "mu" or name in _SCALARS:
        return array.ndim == (2 if name == "mu" else 0)
    stream = name if part == "quantiles" else part
    own = stream in ("z", "grad_z", "weights")
    width = neurons if own else arrays[f"{stream}/moments.mean"].size
    if part == "quantiles":
        return array.shape == (len(QUANTILES), width)
    if not name.startswith("sample."):
        return array.shape == (width,)
    rows = len(arrays[f"{part}/sample.priority"])
    return array.shape == ((rows, width) if name == "sample.rows" else (rows,))
