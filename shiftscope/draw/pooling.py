"""Quantiles of a whole layer out of the quantiles of its neurons, good enough to be drawn.

A layer's pooled distribution is the even mixture of those of its neurons. Each is known by five
quantiles; between and beyond them it is taken as normal with the two nearest ones as given, which
is exact at the five and, for normal neurons, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from shiftscope.columns import QUANTILES
from shiftscope.draw.tables import Array

__all__ = ["mixture", "pooled_quantiles", "stands_for_all"]

_NEURONS = 128
_STRATA = 200


def pooled_quantiles(tables: Mapping[str, Array]) -> Array:
    """Quantiles 1, 25, 50, 75 and 99 % over all neurons of each site.

    Args:
        tables: Site name to the same quantiles of each of its neurons, ``[5, neurons]``.

    Returns:
        ``[5, sites]``; NaN where a site has none.
    """
    columns = [mixture(table) for table in tables.values()]
    return np.stack(columns, axis=1) if columns else np.zeros((5, 0))


def mixture(table: Array) -> Array:
    """Quantiles of the even mixture of distributions given by five quantiles each.

    Args:
        table: ``[5, neurons]``; columns with NaN are left out. Of more than 128 neurons evenly
            chosen ranks of the median stand for all.

    Returns:
        Five quantiles of the mixture; NaN when fewer than half of the columns are known.
    """
    known = np.asarray(np.isfinite(table).all(axis=0))
    if not stands_for_all(known):
        return np.full(5, np.nan)
    table = table[:, known]
    if table.shape[1] > _NEURONS:
        # The middle of each of 128 equal groups: the ends would weigh too much.
        middles = (np.arange(_NEURONS) + 0.5) * table.shape[1] / _NEURONS
        table = table[:, np.argsort(table[2], kind="stable")[middles.astype(np.int64)]]
    values = table.T @ _strata()
    return np.asarray(np.quantile(values, QUANTILES, method="hazen"))


def stands_for_all(known: npt.NDArray[np.bool_]) -> bool:
    """Whether half of the neurons are known: fewer do not tell how the layer is."""
    return bool(known.any() and known.mean() >= 0.5)


@cache
def _strata() -> Array:
    """Weights ``[5, strata]`` that turn five quantiles into evenly spaced ones."""
    knots = ndtri(np.asarray(QUANTILES))
    wanted = ndtri((np.arange(_STRATA) + 0.5) / _STRATA)
    left = np.clip(np.searchsorted(knots, wanted) - 1, 0, len(knots) - 2)
    share = (wanted - knots[left]) / (knots[left + 1] - knots[left])
    weights = np.zeros((len(knots), _STRATA))
    weights[left, np.arange(_STRATA)] = 1 - share
    weights[left + 1, np.arange(_STRATA)] = share
    return weights
