r"""Mean-field maps: what initialisation at unit variance does to signals and gradients with depth.

Square layers with independent weights, infinitely wide, the pooled variance of z scaled to σ² in
every layer. The shift share c of z is the correlation of one neuron between two independent
samples. With :math:`K(c) = E f(u) f(v)`, u and v normal of variance σ² and correlation c:

* standard weights: :math:`c^+ = K(c)/K(1)` and :math:`\chi = \sigma^2 E f'^2 / E f^2`;
* zero-sum weights (LCW): :math:`c^+ = (K(c) - K(0))/(K(1) - K(0))` and
  :math:`\chi_{LC} = \sigma^2 E f'^2 / V f = \varphi_{bw}/\varphi_{fw}`,

χ being the factor of the gradient variance per layer on its way to the input. Both maps have slope
χ at c = 1. The maps of standard weights are those of Poole et al. (NeurIPS 2016, arXiv 1606.05340)
and Schoenholz et al. (ICLR 2017, arXiv 1611.01232), read as maps of the shift share; zero-sum
weights are those of Kutsuna (ECML-PKDD 2019). The mean of f is removed before integrating, so that
the zero-sum map keeps its digits where E f² is far larger than V f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from shiftscope.errors import UsageError
from shiftscope.theory.catalogue import Activation
from shiftscope.theory.pairs import mean_of, pair_mean, resolve

__all__ = [
    "TRAINABLE_DECADES",
    "DepthMap",
    "DepthProfile",
    "FixedPoint",
    "chi",
    "depth_map",
    "depth_scale",
    "fixed_point",
    "predict_profile",
    "trainable_depth",
]

Array = npt.NDArray[np.float64]

TRAINABLE_DECADES = 3.3
"""Decades of gradient variance lost over all layers beyond which nothing trained: the largest
decay, after 20 steps, among 90 of 153 sigmoid networks of 2 to 50 layers that learned digits."""


@dataclass(frozen=True)
class DepthMap:
    """The map of the shift share from one layer's preactivation to the next one's.

    Call it with the share of one layer to get the next one's.
    """

    activation: Activation
    """The activation with value, derivative and kinks."""
    constrained: bool
    """Whether the next layer's weights sum to zero."""
    mean: float
    """Mean of z."""
    std: float
    """Standard deviation of z over neurons and samples."""
    value_mean: float = field(init=False)
    """E f."""
    value_var: float = field(init=False)
    """V f."""
    slope_square: float = field(init=False)
    """E f'² (which is φ_bw)."""

    def __post_init__(self) -> None:
        """Computes the moments that every evaluation shares, variance about the mean."""
        f, df, kinks = self.activation.value, self.activation.derivative, self.activation.kinks
        # the value at the middle goes first: the mean of what is left is as small as its spread
        anchor = float(f(np.array([self.mean]))[0])
        rest = mean_of(lambda z: f(z) - anchor, kinks, self.mean, self.std)
        moments = {
            "value_mean": anchor + rest,
            "value_var": mean_of(
                lambda z: np.square(f(z) - anchor - rest), kinks, self.mean, self.std
            ),
            "slope_square": mean_of(lambda z: np.square(df(z)), kinks, self.mean, self.std),
        }
        for name, moment in moments.items():
            object.__setattr__(self, name, moment)

    @property
    def power(self) -> float:
        """What the next layer sees of f per unit of squared weight norm: E f², or V f if zero-sum.

        The variance of z in the next layer is this times ‖w‖².
        """
        return self.value_var + (0.0 if self.constrained else self.value_mean**2)

    @property
    def chi(self) -> float:
        """Factor of the gradient variance per layer; NaN for an activation that is constant."""
        return self.std**2 * self.slope_square / self.power if self.value_var else math.nan

    def covariance(self, share: float) -> float:
        """Covariance of f between two samples whose preactivations have this correlation."""
        f, mu = self.activation.value, self.value_mean
        return self._pair(lambda z: f(z) - mu, share)

    def __call__(self, share: float) -> float:
        """Computes the next layer's shift share.

        Args:
            share: Shift share of this layer, in [-1, 1].

        Returns:
            The share one layer further; NaN for an activation that is constant.

        Raises:
            UsageError: The share lies outside [-1, 1].
        """
        if not self.value_var:
            return math.nan
        constant = 0.0 if self.constrained else self.value_mean**2
        return (self.covariance(share) + constant) / self.power

    def slope(self, share: float) -> float:
        """Computes the derivative of the map at a share; at 1 it is χ.

        Args:
            share: Shift share, in [-1, 1].

        Returns:
            Factor by which a small difference of shares grows in one layer.
        """
        return self.std**2 * self._pair(self.activation.derivative, share) / self.power

    def _pair(self, function: Any, share: float) -> float:
        return pair_mean(
            function,
            function,
            share,
            kinks=self.activation.kinks,
            means=(self.mean, self.mean),
            stds=(self.std, self.std),
        )


def depth_map(
    activation: Any, *, constrained: bool = False, mean: float = 0.0, std: float = 1.0
) -> DepthMap:
    """Builds the mean-field map of one activation.

    Args:
        activation: A name, a torch module or any elementwise callable.
        constrained: Whether weights sum to zero (LCW).
        mean: Mean of z.
        std: Standard deviation of z over neurons and samples.

    Returns:
        The map of the shift share, with χ.

    Raises:
        UsageError: An unknown activation, or a standard deviation that is not positive.
    """
    if not (std > 0 and math.isfinite(std) and math.isfinite(mean)):
        raise UsageError(
            f"z needs a finite mean and a positive standard deviation, got N({mean}, {std}²)",
            "Pass the standard deviation of the preactivation, for instance 1.0.",
        )
    return DepthMap(resolve(activation, mean, std), constrained, float(mean), float(std))


def chi(activation: Any, *, constrained: bool = False, std: float = 1.0) -> float:
    """Computes the factor of the gradient variance per layer, on its way to the input.

    Args:
        activation: A name, a torch module or any elementwise callable.
        constrained: Whether weights sum to zero: χ_LC = φ_bw/φ_fw, never below 1.
        std: Standard deviation of z.

    Returns:
        χ: below 1 gradients vanish towards the input, above 1 they explode.

    Raises:
        UsageError: An unknown activation, or a standard deviation that is not positive.
    """
    return depth_map(activation, constrained=constrained, std=std).chi


@dataclass(frozen=True)
class FixedPoint:
    """Where the shift share settles with depth."""

    share: float
    """The share that the map leaves alone and that is reached from shares below 1."""
    slope: float
    """Slope of the map there: the factor of a deviation per layer."""


def fixed_point(depth_map: DepthMap) -> FixedPoint:
    """Finds the stable fixed point of a depth map in [0, 1].

    The map is a power series with non-negative coefficients, hence convex, and maps 1 to 1: it is
    1 itself where χ ≤ 1, else the only crossing below 1, which is 0 for zero-sum weights. (An
    affine f with zero-sum weights leaves every share alone; 0 stands for them all.)

    Args:
        depth_map: The map.

    Returns:
        The fixed point and the slope there.
    """
    from scipy.optimize import brentq

    edge = 1.0 - 1e-6

    def excess(share: float) -> float:
        return depth_map(share) - share

    if depth_map.constrained or abs(depth_map.value_mean) <= 1e-12 * math.sqrt(depth_map.power):
        # K(0) = (E f)² is what the map adds at zero
        share = 0.0
    elif excess(edge) >= 0:
        share = 1.0
    else:
        share = float(brentq(excess, 0.0, edge, xtol=1e-14))
    return FixedPoint(share, depth_map.slope(share))


def depth_scale(chi: float) -> float:
    """Computes the number of layers over which the gradient variance changes by the factor e.

    Args:
        chi: Factor of the gradient variance per layer.

    Returns:
        ``1/|ln χ|`` (Schoenholz et al. 2017, ξ_∇); infinite for χ = 1.

    Raises:
        UsageError: χ is not positive.
    """
    return _depth(chi, 1.0 / math.log(10.0))


def trainable_depth(chi: float, decades: float = TRAINABLE_DECADES) -> float:
    """Computes the number of layers after which gradient variance has changed by so many decades.

    An empirical rule, not a theorem: it says up to which depth networks were seen to train.

    Args:
        chi: Factor of the gradient variance per layer.
        decades: Decades of gradient variance that are bearable between first and last layer.

    Returns:
        Layers, not rounded; infinite for χ = 1.

    Raises:
        UsageError: χ or ``decades`` is not positive.
    """
    return _depth(chi, decades)


def _depth(chi: float, decades: float) -> float:
    if not (chi > 0 and decades > 0):
        raise UsageError(
            f"a gradient gain and its decades are positive, got {chi} and {decades}",
            "Pass the gain per layer as a ratio of variances.",
        )
    per_layer = abs(math.log10(chi))
    return decades / per_layer if per_layer else math.inf


@dataclass(frozen=True)
class DepthProfile:
    """The predicted course of shift share and gradient variance through a network."""

    shift_share: Array
    """Shift share of z in every layer, ``[layers]``, first layer first."""
    log10_grad_var: Array
    """log10 of the variance of ∇z relative to the last layer's, ``[layers]``."""
    chi: float
    """Factor of the gradient variance per layer, on its way to the input."""

    @property
    def gradient_slope(self) -> float:
        """Change of log10 Var(∇z) per layer from input to output: positive means vanishing."""
        return -math.log10(self.chi)


def predict_profile(
    layers: int,
    activation: Any,
    *,
    constrained: bool = False,
    c0: float = 0.0,
    std: float = 1.0,
) -> DepthProfile:
    """Predicts shift share and gradient variance of a chain of equal layers at initialisation.

    >>> profile = predict_profile(20, "sigmoid")
    >>> round(float(profile.shift_share[1]), 3), round(profile.gradient_slope, 4)
    (0.852, 0.8158)

    Args:
        layers: Number of layers.
        activation: A name, a torch module or any elementwise callable.
        constrained: Whether weights sum to zero (LCW).
        c0: Shift share of the first layer; about 0 where inputs are centred.
        std: Standard deviation of z, the same in all layers.

    Returns:
        The profile over the layers.

    Raises:
        UsageError: No layer, a share outside [-1, 1], or an unknown activation.
    """
    if layers < 1:
        raise UsageError(
            f"a network has at least one layer, got {layers}", "Pass the number of layers."
        )
    step = depth_map(activation, constrained=constrained, std=std)
    shares = [c0]
    for _ in range(layers - 1):
        # rounding may leave the map a little above 1
        shares.append(min(step(shares[-1]), 1.0))
    behind: Array = np.arange(layers - 1.0, -1.0, -1.0)
    return DepthProfile(np.array(shares), behind * float(np.log10(step.chi)), step.chi)
