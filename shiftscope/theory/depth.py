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

from shiftscope.errors import UsageError
from shiftscope.theory.functions import Activation, Function
from shiftscope.theory.pairs import mean_of, pair_mean, panels_for, resolve

__all__ = [
    "DepthMap",
    "FixedPoint",
    "chi",
    "depth_map",
    "fixed_point",
]


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
    panels: int = field(init=False, repr=False)
    """Quadrature panels that resolve the activation."""

    def __post_init__(self) -> None:
        """Computes the moments that every evaluation shares, variance about the mean."""
        f, df = self.activation.value, self.activation.derivative
        object.__setattr__(self, "panels", panels_for(self.activation, self.mean, self.std))
        # the value at the middle goes first: the mean of what is left is as small as its spread
        anchor = float(f(np.array([self.mean]))[0])
        rest = self._mean(lambda z: f(z) - anchor)
        object.__setattr__(self, "value_mean", anchor + rest)
        object.__setattr__(self, "value_var", self._mean(lambda z: (f(z) - anchor - rest) ** 2))
        object.__setattr__(self, "slope_square", self._mean(lambda z: np.square(df(z))))

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

    @property
    def asymmetry(self) -> float:
        """Pooled forward gain of the next linear map over its backward gain.

        1 + (E f)²/V f for standard weights, 1 for zero-sum ones (Kutsuna 2019, Sec. 4.1, pooled).
        """
        return self.power / self.value_var if self.value_var else math.nan

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

    def _mean(self, function: Function) -> float:
        return mean_of(function, self.activation.kinks, self.mean, self.std, panels=self.panels)

    def _pair(self, function: Function, share: float) -> float:
        return pair_mean(
            function,
            function,
            share,
            kinks=self.activation.kinks,
            means=(self.mean, self.mean),
            stds=(self.std, self.std),
            panels=self.panels,
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
