r"""The mean-field prediction for the layers of a given network, one after the other.

The maps of :mod:`shiftscope.theory.depth` with what is known of a real network put in: the weight
norms of every layer, and the measured mean and standard deviation of what enters every activation.
Layer l computes ``y = W a + b``, possibly normalised neuron by neuron (batch norm) to z, and
``a = f(z)``. With η the mean squared norm of its rows and ξ that of its columns
(Kutsuna 2019, Props. 4 and 5)

* variance between the neurons of the next y: :math:`\eta^+ K(c) + \sigma_b^2`, or
  :math:`\eta^+ (K(c) - K(0)) + \sigma_b^2` if its weights sum to zero, with the variance
  :math:`\sigma_b^2` of its biases;
* variance within them: :math:`\eta^+ (K(1) - K(c))`;
* gradients: :math:`V(\nabla z) = \varphi_{bw}\, \xi^+\, V(\nabla y^+)`.

Premises: rows of the weight in random directions and neurons uncorrelated. Trained networks break
both, so the distance of the measured profile from this one is itself a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shiftscope.errors import UsageError
from shiftscope.theory.arrays import Array, float64
from shiftscope.theory.depth import depth_map

__all__ = ["SiteProfile", "profile_for_sites"]


@dataclass(frozen=True)
class SiteProfile:
    """Predicted shift share, variance and gradients of every layer, input side first."""

    shift_share: Array
    """Shift share of z, which enters the activation, ``[layers]``."""
    z_var: Array
    """Pooled variance of the layer's linear output, before any normalisation, ``[layers]``."""
    gradient_gain: Array
    """Var(∇z) of this layer over that of the next one, ``[layers]``; NaN for the last."""
    log10_grad_var: Array
    """log10 of Var(∇z) relative to the last layer's, ``[layers]``."""


def profile_for_sites(
    activations: Sequence[Any],
    eta: npt.ArrayLike,
    xi: npt.ArrayLike,
    z_mean: npt.ArrayLike | None = None,
    z_std: npt.ArrayLike | None = None,
    *,
    constrained: bool | Sequence[bool] = False,
    normalized: bool | Sequence[bool] = False,
    bias_var: npt.ArrayLike | None = None,
    c0: float = 0.0,
    input_power: float = 1.0,
) -> SiteProfile:
    """Predicts the depth profile of a given network from its weight norms and moments of z.

    Args:
        activations: What follows every linear layer: names, torch modules or callables;
            "identity" for an output layer.
        eta: Mean squared norms of weight rows, ``[layers]``; for convolutions of whole kernels.
        xi: Mean squared norms of weight columns, ``[layers]``; for convolutions per input pixel.
        z_mean: Measured pooled mean of z, ``[layers]``; NaN or None for 0.
        z_std: Measured pooled standard deviation of z, ``[layers]``; NaN or None where it is to
            be predicted.
        constrained: Whether the rows of each layer sum to zero.
        normalized: Whether z is normalised neuron by neuron behind each layer: its share is 0.
        bias_var: Variance of each layer's biases over its neurons, ``[layers]``; None for 0.
        c0: Shift share of the first layer's output; 0 for centred inputs without biases.
        input_power: Mean square of the network's inputs, as far as the first weights see it.

    Returns:
        The predicted profile.

    Raises:
        UsageError: Lengths that differ, norms that are not positive, or an unknown activation.
    """
    layers = len(activations)
    if not layers:
        raise UsageError("a network has at least one layer, got none", "Pass its activations.")
    rows, columns = _column("eta", eta, layers), _column("xi", xi, layers)
    if not ((rows > 0).all() and (columns > 0).all()):
        raise UsageError(
            "eta and xi must be positive: a layer without weight passes nothing on",
            "Leave layers with zero weight out of the profile.",
        )
    means, stds = _column("z_mean", z_mean, layers), _column("z_std", z_std, layers)
    zero_sum = _flags("constrained", constrained, layers)
    normal = _flags("normalized", normalized, layers)
    biases = np.nan_to_num(_column("bias_var", bias_var, layers))
    shares, variances, factors, slopes = (np.empty(layers) for _ in range(4))
    share, power = c0, input_power
    for k, activation in enumerate(activations):
        variances[k] = rows[k] * power + biases[k]
        spread = 1.0 if normal[k] else variances[k]
        std = math.sqrt(spread) if math.isnan(stds[k]) else stds[k]
        # what leaves layer k is seen through the constraint of layer k + 1
        seen = bool(zero_sum[k + 1]) if k + 1 < layers else False
        out = depth_map(activation, constrained=seen, mean=np.nan_to_num(means[k]), std=std)
        within = variances[k] * (1.0 - share)
        factors[k] = _ratio(std**2, within) if normal[k] else 1.0
        slopes[k] = out.slope_square
        shares[k] = 0.0 if normal[k] else share
        share, power = min(out(shares[k]), 1.0), out.power
        if k + 1 < layers and biases[k + 1]:
            total = rows[k + 1] * power + biases[k + 1]
            share = 1.0 - (1.0 - share) * rows[k + 1] * power / total
    gains = np.append(slopes[:-1] * columns[1:] * factors[1:], math.nan)
    return SiteProfile(shares, variances, gains, _accumulate(gains))


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.inf


def _accumulate(gains: Array) -> Array:
    """log10 of the products of the gains from each layer on; in logs nothing underflows."""
    with np.errstate(divide="ignore"):
        logs = np.log10(gains[:-1])
    return np.append(np.cumsum(logs[::-1])[::-1], 0.0)


def _column(name: str, values: npt.ArrayLike | None, layers: int) -> Array:
    column = np.full(layers, math.nan) if values is None else float64(values)
    if column.shape != (layers,):
        raise UsageError(
            f"{name} has shape {column.shape}, but there are {layers} activations",
            "Pass one entry per layer, in the order of the forward pass.",
        )
    return column


def _flags(name: str, values: bool | Sequence[bool], layers: int) -> npt.NDArray[np.bool_]:
    flags = np.full(layers, values) if isinstance(values, bool) else np.asarray(values, dtype=bool)
    if flags.shape != (layers,):
        raise UsageError(
            f"{name} has shape {flags.shape}, but there are {layers} activations",
            "Pass one flag per layer, or one for all.",
        )
    return flags
