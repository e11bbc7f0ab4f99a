"""What every function of numbers needs: any input as a float64 numpy array."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "float64"]

Array = npt.NDArray[np.float64]


def float64(value: Any) -> Array:
    """``value`` as a float64 array; torch tensors are detached and brought to the host."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)
