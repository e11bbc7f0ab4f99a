"""Means, variances and gains of a linear layer from its weights and its input's moments.

Behind ``z = W a + b`` with ``E a = μ̂`` and ``Cov a = Σ`` exactly ``E z_i = w_i·μ̂ + b_i`` and
``V z_i = w_iᵀ Σ w_i`` (Kutsuna 2019, Propositions 1 to 4 without their premises). With the moments
of a batch these are algebraic identities, not statistics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from shiftscope.errors import UsageError
from shiftscope.theory.arrays import Array, float64

__all__ = ["IidMoments", "Isotropy", "LinearMoments", "iid_moments", "isotropy", "linear_moments"]


@dataclass(frozen=True, slots=True)
class LinearMoments:
    """First and second moments of one linear layer.

    Attributes:
        z_mean: E z_i, [out].
        z_var: V z_i, [out].
        within: Mean of the V z_i.
        between: Variance of the E z_i over neurons.
        input_within: Mean of the V a_j.
        input_between: Variance of the E a_j over inputs.
        eta: Mean squared row norm of W.
        xi: Mean squared column norm of W.
    """

    z_mean: Array
    z_var: Array
    within: float
    between: float
    input_within: float
    input_between: float
    eta: float
    xi: float

    @property
    def pooled(self) -> float:
        """Variance of z over samples and neurons together: within + between."""
        return self.within + self.between

    @property
    def input_pooled(self) -> float:
        """Variance of a over samples and inputs together."""
        return self.input_within + self.input_between

    @property
    def shift_share(self) -> float:
        """Between-neuron share of the pooled variance; NaN where z does not vary."""
        return _over(self.between, self.pooled)

    @property
    def eta_measured(self) -> float:
        """Forward gain of per-neuron variances: within over the inputs' mean variance."""
        return _over(self.within, self.input_within)

    @property
    def eta_pooled(self) -> float:
        """Forward gain of the pooled variance of z over the inputs' mean variance."""
        return _over(self.pooled, self.input_within)

    @property
    def eta_pooled_over_pooled(self) -> float:
        """Forward gain of pooled variances."""
        return _over(self.pooled, self.input_pooled)

    @property
    def asymmetry(self) -> float:
        """Pooled forward gain over the backward gain ξ of Proposition 5.

        For rectangular W it carries the ratio fan-in / fan-out besides the shift.
        """
        return _over(self.eta_pooled, self.xi)


def linear_moments(weight: Any, mean: Any, covariance: Any, bias: Any = None) -> LinearMoments:
    """Moments of the outputs of a linear layer.

    Args:
        weight: W, [out, in].
        mean: μ̂, [in], or one number for all inputs.
        covariance: Σ, [in, in]; or variances [in] or one number, of uncorrelated inputs.
        bias: b, [out], or None.

    Returns:
        The moments.

    Raises:
        UsageError: The shapes do not fit.

    Source: Kutsuna (2019), Propositions 1, 2, 4 and 5, and the law of total variance.
    """
    w = float64(weight)
    if w.ndim != 2 or not w.size:
        raise UsageError(
            f"weight must be [out, in], got shape {w.shape}", "Flatten kernels to rows first."
        )
    mu, sigma = _moments_of_input(mean, covariance, w.shape[1])
    b = np.zeros(w.shape[0]) if bias is None else float64(bias)
    if b.shape != (w.shape[0],):
        raise UsageError(
            f"bias must be [{w.shape[0]}], got shape {b.shape}", "Pass b of the layer."
        )
    z_mean, z_var = w @ mu + b, ((w @ sigma) * w).sum(axis=1)
    return LinearMoments(
        z_mean,
        z_var,
        float(z_var.mean()),
        float(z_mean.var()),
        float(np.trace(sigma) / w.shape[1]),
        float(mu.var()),
        float(np.square(w).sum() / w.shape[0]),
        float(np.square(w).sum() / w.shape[1]),
    )


def _moments_of_input(mean: Any, covariance: Any, size: int) -> tuple[Array, Array]:
    """The mean vector and the covariance matrix in full."""
    mu, sigma = float64(mean), float64(covariance)
    try:
        mu = np.broadcast_to(mu, (size,))
        if sigma.ndim < 2:
            sigma = np.diag(np.broadcast_to(sigma, (size,)))
        sigma = np.broadcast_to(sigma, (size, size))
    except ValueError:
        raise UsageError(
            f"mean of shape {mu.shape} and covariance of shape {sigma.shape} do not fit "
            f"{size} inputs",
            "Give a mean [in] and a covariance [in, in].",
        ) from None
    return mu, sigma


@dataclass(frozen=True, slots=True)
class IidMoments:
    """Expected moments of a square layer with iid zero-mean weights.

    Attributes:
        within: E within = m s² σ².
        between: E between = m s² γ² (less the factor 1 - 1/m of the variance over neurons).
        shift_share: γ² / (γ² + σ²).
        asymmetry: Pooled forward over backward gain, 1 + γ²/σ².
        lcw_within: E within with rows centred to sum zero, (m - 1) s² σ².
    """

    within: float
    between: float
    shift_share: float
    asymmetry: float
    lcw_within: float


def iid_moments(inputs: int, gamma: float, std: float, weight_std: float) -> IidMoments:
    """What standard random weights make of inputs with mean γ and standard deviation σ.

    Args:
        inputs: Fan-in m.
        gamma: Mean γ of every input.
        std: Standard deviation σ of every input, positive.
        weight_std: Standard deviation s of the weights.

    Returns:
        The expected moments; share and asymmetry depend on γ/σ only.

    Raises:
        UsageError: A std that is not positive.

    Source: Kutsuna (2019), Figure 1 and Section 4.1, made exact for iid weights.
    """
    if not std > 0:
        raise UsageError(
            f"std must be positive, got {std}", "Constant inputs have no variance gain."
        )
    power, ratio = weight_std**2, (gamma / std) ** 2
    return IidMoments(
        inputs * power * std**2,
        inputs * power * gamma**2,
        ratio / (1 + ratio),
        1 + ratio,
        (inputs - 1) * power * std**2,
    )


@dataclass(frozen=True, slots=True)
class Isotropy:
    """How far a real layer is from the premise Cov a = σ²I of Propositions 4 and 5.

    Where the premise fails the propositions do not apply; that does not violate them.

    Attributes:
        ratio: Mean over neurons of V(z_i) / (σ²‖w_i‖²); 1 under the premise.
        cv: Its coefficient of variation over neurons; 0 under the premise.
        noise: The coefficient of variation that sampling alone would give, about √(2/rows).
        neurons: Neurons with a non-zero weight.
    """

    ratio: float
    cv: float
    noise: float
    neurons: int

    @property
    def premise_holds(self) -> bool:
        """Whether sampling explains the spread, within three standard errors and a fifth for tails.

        The coefficient of variation of so many neurons has a relative error of 1/√(2 neurons).
        """
        return self.cv <= self.noise * (1.2 + 3.0 / math.sqrt(2.0 * self.neurons))


def isotropy(variance: Any, norm: Any, input_variance: float, rows: int) -> Isotropy:
    """Compare measured variances, neuron by neuron, with those of uncorrelated inputs.

    Args:
        variance: Measured V z_i, [out] (or V ∇a_j for the backward direction).
        norm: ‖w_i‖, [out] (or the column norms).
        input_variance: Mean variance σ² of the inputs (or of ∇z).
        rows: Independent rows behind the variances.

    Returns:
        The mean ratio, its spread, and the spread that sampling explains.

    Raises:
        UsageError: No neuron has a weight, or the inputs do not vary.
    """
    v, power = float64(variance), np.square(float64(norm)) * input_variance
    keep = power > 0
    if not keep.any() or rows < 2:
        raise UsageError(
            "no neuron has a predicted variance to compare with",
            "Give at least two rows, a positive input variance and non-zero weights.",
        )
    ratio = v[keep] / power[keep]
    average = float(ratio.mean())
    return Isotropy(
        average, float(ratio.std() / average), math.sqrt(2 / rows), int(np.count_nonzero(keep))
    )


def _over(top: float, bottom: float) -> float:
    return top / bottom if bottom > 0 else math.nan
