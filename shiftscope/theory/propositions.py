"""Propositions 1 to 6 of the LCW paper as claims, each with its negative controls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from shiftscope.geometry.angles import angle
from shiftscope.theory.claims import Bench, Case, Claim, Comparison, Kind
from shiftscope.theory.montecarlo import compare_means, compare_variances, row_moments
from shiftscope.theory.samplers import LAWS, Source

__all__ = ["PROPOSITIONS"]

INPUTS = 16
"""Fan-in m of the tested layers."""
NEURONS = 8
"""Neurons, each one comparison."""
_PAPER = "Kutsuna (2019)"
_UNCORRELATED = ("gaussian", "uniform", "laplace", "signs", "rare", "scaled")
_ALL = tuple(LAWS)

Predict = Callable[[Tensor, Source], Tensor]


def weights(bench: Bench, zero_sum: bool = False, rows: int = NEURONS) -> Tensor:
    """Gaussian weights of variance 1/m, float64 [rows, INPUTS]; rows sum to 0 if ``zero_sum``."""
    generator = bench.generator
    drawn = torch.randn(
        (rows, INPUTS), generator=generator, device=generator.device, dtype=torch.float64
    )
    drawn /= math.sqrt(INPUTS)
    return drawn - drawn.mean(dim=1, keepdim=True) if zero_sum else drawn


def source(bench: Bench, law: str, gamma: float, std: float = 1.0, tilt: float = 0.0) -> Source:
    """Rows of mean γ1 (Definition 1), tilted by ``tilt`` times a zero-sum pattern."""
    place = torch.arange(INPUTS, dtype=torch.float64, device=bench.generator.device)
    pattern = torch.cos(2 * math.pi * place / INPUTS)
    return Source(LAWS[law], gamma + tilt * pattern, std)


def _ones(w: Tensor) -> Tensor:
    return torch.ones(w.shape[1], dtype=torch.float64, device=w.device)


def _lengths(w: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(w, dim=1)
    return lengths


def by_theta(w: Tensor, a: Source) -> Tensor:
    """Proposition 1, corrected: γ √m ‖w_i‖ cos θ_i, θ_i the angle to the vector of ones."""
    theta = angle(w, _ones(w)[None])
    return a.mean.mean() * math.sqrt(w.shape[1]) * _lengths(w) * torch.cos(theta)


def by_absolute_gamma(w: Tensor, a: Source) -> Tensor:
    """Proposition 1 as printed: |γ| in place of γ."""
    return by_theta(w, replace(a, mean=a.mean.abs()))


def by_signed_angle(w: Tensor, a: Source) -> Tensor:
    """Proposition 1 with |γ| and the angle measured to γ1, which makes |γ| right."""
    theta = angle(w, a.mean[None])
    return a.mean.mean().abs() * math.sqrt(w.shape[1]) * _lengths(w) * torch.cos(theta)


def by_mean_angle(w: Tensor, a: Source) -> Tensor:
    """Proposition 2: ‖w_i‖ ‖μ̂‖ cos θ̂_i, and 0 where μ̂ = 0."""
    if not bool(a.mean.any()):
        return torch.zeros(w.shape[0], dtype=torch.float64, device=w.device)
    length = _lengths(a.mean[None])
    return _lengths(w) * length * torch.cos(angle(w, a.mean[None]))


def _nothing(w: Tensor, a: Source) -> Tensor:
    """Propositions 3 to 5: the mean is 0."""
    return torch.zeros(w.shape[0], dtype=torch.float64, device=w.device)


def isotropic(w: Tensor, a: Source) -> Tensor:
    """Propositions 4 and 5: σ²‖w_i‖²."""
    return a.std**2 * w.square().sum(dim=1)


def quadratic(w: Tensor, a: Source) -> Tensor:
    """Any covariance: w_iᵀ Σ w_i."""
    return ((w @ a.covariance) * w).sum(dim=1)


def linear_case(
    name: str,
    law: str,
    gamma: float,
    mean: Predict | None,
    variance: Predict | None = None,
    *,
    std: float = 1.0,
    tilt: float = 0.0,
    zero_sum: bool = False,
    transpose: bool = False,
    bias: float = 0.0,
    kind: Kind = "claim",
) -> Case:
    """A case that sends rows through random weights and compares means and variances.

    Args:
        name: Name of the case.
        law: Law of the rows.
        gamma: Their mean γ, equal in all coordinates.
        mean: Predicts the means of the outputs; None leaves them out.
        variance: Predicts the variances; None leaves them out.
        std: Their σ.
        tilt: Size of a zero-sum pattern added to the mean, which breaks Definition 1.
        zero_sum: Draw weights with zero row sums (LCW).
        transpose: The backward direction: the compared vectors are columns of a square W.
        bias: Added to every output.
        kind: What the case is for.
    """

    def measure(bench: Bench) -> list[Comparison]:
        w = weights(bench, zero_sum, INPUTS if transpose else NEURONS)
        w = w.T.contiguous() if transpose else w
        a = source(bench, law, gamma, std, tilt)

        def draw(generator: Generator, rows: int) -> Tensor:
            return a.draw(generator, rows) @ w.T + bias

        measured = row_moments(bench, draw, w @ a.mean + bias)
        symbols = ("E ∇a", "V ∇a") if transpose else ("E z", "V z")
        out = compare_means(measured, mean(w, a).cpu(), symbols[0]) if mean else []
        if variance:
            out += compare_variances(measured, variance(w, a).tolist(), symbols[1])
        return out

    return Case(name, _assumptions(law, gamma, std, tilt, zero_sum, bias), measure, kind)


def _assumptions(
    law: str, gamma: float, std: float, tilt: float, zero_sum: bool, bias: float
) -> str:
    parts = [
        LAWS[law].text,
        f"mean {gamma:g}" + (" plus a pattern" if tilt else ""),
        f"σ = {std:g}",
    ]
    parts.append("zero-sum weights" if zero_sum else "Gaussian weights")
    return ", ".join([*parts, *([f"bias {bias:g}"] if bias else [])])


def _relu_case(name: str, law: str, mean: float, shift: float, kind: Kind = "claim") -> Case:
    """Proposition 6 at four σ: z Gaussian around ``mean``, ∇a of ``law`` around ``shift``."""
    stds, tau = (0.25, 0.5, 1.0, 3.0), 0.8

    def measure(bench: Bench) -> list[Comparison]:
        sigma = torch.tensor(stds, dtype=torch.float64, device=bench.generator.device)
        forward = sigma.square() * 0.5 * (1 - 1 / math.pi)
        backward = torch.full_like(sigma, 0.5 * tau**2)

        def draw(generator: Generator, rows: int) -> Tensor:
            z = LAWS["gaussian"].noise(generator, (rows, len(stds))) * sigma + mean
            grad = LAWS[law].noise(generator, (rows, len(stds))) * tau + shift
            return torch.cat([z.clamp_min(0.0), grad * (z > 0)], dim=1)

        pivot = torch.cat([sigma / math.sqrt(2 * math.pi), torch.zeros_like(sigma)])
        measured = row_moments(bench, draw, pivot)
        both = compare_variances(measured, [*forward.tolist(), *backward.tolist()])
        labels = [f"V a, σ={s:g}" for s in stds] + [f"V ∇z, σ={s:g}" for s in stds]
        return [replace(c, quantity=label) for c, label in zip(both, labels, strict=True)]

    text = f"z Gaussian with mean {mean:g}, ∇a independent of z: {LAWS[law].text}, mean {shift:g}"
    return Case(name, text, measure, kind)


def _forward(laws: tuple[str, ...], gamma: float, mean: Predict, **options: object) -> list[Case]:
    return [linear_case(law, law, gamma, mean, **options) for law in laws]  # type: ignore[arg-type]


_FIRST = Claim(
    "prop1",
    "Mean of a preactivation under P_γ",
    f"{_PAPER}, Proposition 1 (with γ for the printed |γ|)",
    "E(w_i·a) = γ √m ‖w_i‖ cos θ_i",
    (1,),
    (
        *_forward(_ALL, 0.75, by_theta),
        linear_case("γ < 0", "gaussian", -0.75, by_theta),
        linear_case("γ < 0, correlated", "mixed", -1.5, by_theta),
        linear_case("γ = 0", "rare", 0.0, by_theta),
        linear_case("mean not γ1", "gaussian", 0.5, by_theta, tilt=0.5, kind="negative control"),
    ),
)

_SECOND = Claim(
    "prop2",
    "Mean of a preactivation under any law",
    f"{_PAPER}, Proposition 2",
    "E(w_i·a) = ‖w_i‖ ‖μ̂‖ cos θ̂_i",
    (2,),
    (
        *_forward(_ALL, 0.25, by_mean_angle, tilt=1.0),
        linear_case("μ̂ = 0", "laplace", 0.0, by_mean_angle),
        linear_case("bias left out", "gaussian", 0.25, by_mean_angle, tilt=1.0, bias=0.1,
                    kind="negative control"),
    ),
)  # fmt: skip

_THIRD = Claim(
    "prop3",
    "Zero-sum weights have no activation shift under P_γ",
    f"{_PAPER}, Proposition 3",
    "w_i·1 = 0 and a ~ P_γ imply E(w_i·a) = 0",
    (3,),
    (
        *_forward(_ALL, 1.0, _nothing, zero_sum=True),
        linear_case("γ < 0", "uniform", -2.0, _nothing, zero_sum=True),
        linear_case("weights not zero-sum", "gaussian", 1.0, _nothing, kind="negative control"),
        linear_case("mean not γ1", "gaussian", 1.0, _nothing, tilt=0.5, zero_sum=True,
                    kind="negative control"),
    ),
)  # fmt: skip

_FOURTH = Claim(
    "prop4",
    "Forward variance of zero-sum weights",
    f"{_PAPER}, Proposition 4",
    "w_i·1 = 0, E a = γ1, Cov a = σ²I imply E z_i = 0, V z_i = σ²‖w_i‖²",
    (4,),
    (
        *(linear_case(law, law, -1.25, _nothing, isotropic, std=0.6, zero_sum=True)
          for law in _UNCORRELATED),
        linear_case("variance, any weights and bias", "laplace", 2.0, None, isotropic, bias=0.3),
        linear_case("general Σ", "correlated", 0.5, _nothing, quadratic, zero_sum=True),
        linear_case("weights not zero-sum", "gaussian", -1.25, _nothing, isotropic, std=0.6,
                    kind="negative control"),
        linear_case("Σ not σ²I", "correlated", 0.5, None, isotropic, zero_sum=True,
                    kind="negative control"),
    ),
)  # fmt: skip

_FIFTH = Claim(
    "prop5",
    "Backward variance",
    f"{_PAPER}, Proposition 5",
    "E ∇z = 0, Cov ∇z = σ²I imply E ∇a_j = 0, V ∇a_j = σ²‖w̃_j‖²",
    (5,),
    (
        *(linear_case(law, law, 0.0, _nothing, isotropic, std=0.9, transpose=True)
          for law in _UNCORRELATED),
        linear_case("gradient shift", "gaussian", 0.3, by_mean_angle, isotropic, tilt=0.2,
                    transpose=True),
        linear_case("E ∇z ≠ 0", "gaussian", 0.3, _nothing, transpose=True,
                    kind="negative control"),
        linear_case("Cov ∇z not σ²I", "correlated", 0.0, None, isotropic, transpose=True,
                    kind="negative control"),
    ),
)  # fmt: skip

_SIXTH = Claim(
    "prop6",
    "Gains of ReLU",
    f"{_PAPER}, Proposition 6",
    "z ~ N(0, σ²), ∇a independent with mean 0 imply V a = (σ²/2)(1 − 1/π), V ∇z = τ²/2",
    (6,),
    (
        _relu_case("gaussian", "gaussian", 0.0, 0.0),
        _relu_case("laplace gradient", "laplace", 0.0, 0.0),
        _relu_case("discrete gradient", "rare", 0.0, 0.0),
        _relu_case("μ ≠ 0", "gaussian", 0.5, 0.0, kind="negative control"),
        _relu_case("E ∇a ≠ 0", "gaussian", 0.0, 0.8, kind="negative control"),
    ),
)

PROPOSITIONS = (_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH)
"""The six propositions of the LCW paper."""
