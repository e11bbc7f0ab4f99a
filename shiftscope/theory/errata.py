"""The LCW paper's slips as claims: as printed they must fail, put right they must hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from shiftscope.theory.activations import gains
from shiftscope.theory.claims import Bench, Case, Claim, Comparison, Kind
from shiftscope.theory.montecarlo import compare_means, compare_variances, row_moments
from shiftscope.theory.propositions import (
    by_absolute_gamma,
    by_signed_angle,
    by_theta,
    linear_case,
    weights,
)
from shiftscope.theory.samplers import LAWS
from shiftscope.theory.shift_laws import law_case, rescaling_case

__all__ = ["ERRATA"]

_PAPER = "Kutsuna (2019)"
_STDS = (0.5, 1.0, 2.0)
_PRINTED = ((0.236, 0.208, 0.157), (0.237, 0.211, 0.170))
"""Section 4.2: printed φ_fw and φ_bw of the sigmoid at σ̂ = 1/2, 1, 2."""


def _sigmoid_case(
    name: str,
    forward: Sequence[float],
    backward: Sequence[float],
    kind: Kind,
    root: bool = False,
    rounding: float = 0.0,
) -> Case:
    """Compare measured gains of the sigmoid with six predictions."""

    def measure(bench: Bench) -> list[Comparison]:
        sigma = torch.tensor(_STDS, dtype=torch.float64, device=bench.generator.device)

        def draw(generator: Generator, rows: int) -> Tensor:
            noise = LAWS["gaussian"].noise
            a = torch.sigmoid(noise(generator, (rows, len(_STDS))) * sigma)
            # The slope of the sigmoid is a (1 - a); z and ∇a are drawn apart.
            b = torch.sigmoid(noise(generator, (rows, len(_STDS))) * sigma)
            grad = noise(generator, (rows, len(_STDS)))
            return torch.cat([a / sigma, grad * b * (1 - b)], dim=1)

        pivot = torch.cat([0.5 / sigma, torch.zeros_like(sigma)])
        measured = row_moments(bench, draw, pivot)
        out = compare_variances(measured, [*forward, *backward], "φ", root, rounding)
        symbol = "√φ" if root else "φ"
        labels = [f"{symbol}_{d}, σ={s:g}" for d in ("fw", "bw") for s in _STDS]
        return [replace(c, quantity=label) for c, label in zip(out, labels, strict=True)]

    text = "z ~ N(0, σ²), ∇a ~ N(0, 1) independent of z"
    return Case(name, text, measure, kind)


def _relu_digits() -> Case:
    """The ReLU gains of the same section, which are variance ratios, to their two digits."""

    def measure(bench: Bench) -> list[Comparison]:
        def draw(generator: Generator, rows: int) -> Tensor:
            z, grad = LAWS["gaussian"].noise(generator, (2, rows))
            return torch.stack([z.clamp_min(0.0), grad * (z > 0)], dim=1)

        pivot = torch.tensor([0.4, 0.0], dtype=torch.float64, device=bench.generator.device)
        measured = row_moments(bench, draw, pivot)
        out = compare_variances(measured, [0.34, 0.5], rounding=0.005)
        return [replace(c, quantity=q) for c, q in zip(out, ("φ_fw", "φ_bw"), strict=True)]

    return Case("ReLU: variance ratios .34, .5", "z, ∇a ~ N(0, 1)", measure, "corrected")


def _preserving(name: str, norm: float, kind: Kind) -> Case:
    """Zero-sum rows of squared norm ``norm`` behind a sigmoid: is the variance of z kept at 1?"""

    def measure(bench: Bench) -> list[Comparison]:
        w = weights(bench, zero_sum=True)
        w = w * (math.sqrt(norm) / w.norm(dim=1, keepdim=True))

        def draw(generator: Generator, rows: int) -> Tensor:
            z = LAWS["gaussian"].noise(generator, (rows, w.shape[1]))
            z_next: Tensor = torch.sigmoid(z) @ w.T
            return z_next

        pivot = torch.zeros(w.shape[0], dtype=torch.float64, device=w.device)
        return compare_variances(row_moments(bench, draw, pivot), [1.0] * w.shape[0], "V z⁺")

    return Case(
        name, f"z ~ N(0, 1), a = sigmoid(z), zero-sum rows, ‖w‖² = {norm:.5g}", measure, kind
    )


def _normalised(name: str, with_bias: bool, kind: Kind) -> Case:
    """Weight-normalised initialisation: b = -mean/std, so that z is centred but w·a is not."""

    def measure(bench: Bench) -> list[Comparison]:
        w = weights(bench)
        w = w / w.norm(dim=1, keepdim=True)
        bias = -w.sum(dim=1) if with_bias else torch.zeros_like(w[:, 0])

        def draw(generator: Generator, rows: int) -> Tensor:
            a = LAWS["uniform"].noise(generator, (rows, w.shape[1])) + 1.0
            z: Tensor = a @ w.T + bias
            return z

        measured = row_moments(bench, draw, w.sum(dim=1) + bias)
        zero = torch.zeros(w.shape[0], dtype=torch.float64)
        return compare_means(measured, zero, "E z" if with_bias else "E(w·a)")

    return Case(name, "inputs with mean 1 and σ = 1, rows of norm 1", measure, kind)


def _true_gains(power: float) -> tuple[list[float], list[float]]:
    values = [gains("sigmoid", 0.0, s) for s in _STDS]
    return [v.phi_fw**power for v in values], [v.phi_bw**power for v in values]


_NEEDED = 1.0 / gains("sigmoid").variance

ERRATA = (
    Claim(
        "erratum1",
        "Sign of the shift for γ < 0",
        f"{_PAPER}, Proposition 1",
        "|γ| √m ‖w_i‖ cos θ_i with θ_i measured to 1 (printed); γ or ∠(w_i, γ1) (corrected)",
        (1,),
        (
            linear_case("as printed: |γ|", "gaussian", -0.75, by_absolute_gamma, kind="as printed"),
            linear_case("corrected: γ", "gaussian", -0.75, by_theta, kind="corrected"),
            linear_case("corrected: θ to γ1", "laplace", -0.75, by_signed_angle, kind="corrected"),
        ),
    ),
    Claim(
        "sigmoid_table",
        "Gains of the sigmoid",
        f"{_PAPER}, Section 4.2",
        "the printed (.236, .237), (.208, .211), (.157, .170) are ratios of standard deviations",
        (6,),
        (
            _sigmoid_case("as printed: variance ratios", *_PRINTED, "as printed", rounding=1e-3),
            _sigmoid_case("corrected: variance ratios", *_true_gains(1.0), "corrected"),
            _sigmoid_case("printed values, standard deviations", *_PRINTED, "corrected", root=True,
                          rounding=1e-3),
            _relu_digits(),
        ),
    ),
    Claim(
        "erratum3",
        "Weight norm that keeps the variance behind a sigmoid",
        f"{_PAPER}, Section 4.3",
        "the variance needs ‖w‖² = 1/0.043379 = 23.05 (‖w‖ = 4.80), not 1/0.21 = 4.76",
        (4, 6),
        (
            _preserving("as printed: 1/0.21", 1 / 0.21, "as printed"),
            _preserving("corrected: 1/φ_fw", _NEEDED, "corrected"),
        ),
    ),
    Claim(
        "erratum4",
        "Rescaling W by κ",
        f"{_PAPER}, Section 4.1",
        "all variances scale by κ², zero-sum weights or not",
        (4, 5),
        (rescaling_case(printed=True), rescaling_case(printed=False)),
    ),
    Claim(
        "erratum5",
        "Which variance the shift amplifies",
        f"{_PAPER}, Sections 4.1 and 4.3",
        "the asymmetry 1 + γ²/σ² is one of pooled variances; per neuron it is 1",
        (1, 4, 5),
        (
            law_case("as printed: per neuron", "per-neuron asymmetry", 5.0, gamma=2.0,
                     kind="as printed"),
            law_case("corrected: per neuron 1", "per-neuron asymmetry", 1.0, gamma=2.0,
                     kind="corrected"),
            law_case("corrected: pooled", "asymmetry", 5.0, gamma=2.0, kind="corrected"),
        ),
    ),
    Claim(
        "wn_init",
        "Data-dependent initialisation of weight normalisation",
        f"{_PAPER}, Section 5, by its Definition 2",
        "the bias cancels the shift of w·a; it is not absent",
        (1,),
        (
            _normalised("as printed: no shift", False, "as printed"),
            _normalised("corrected: cancelled by the bias", True, "corrected"),
        ),
    ),
)  # fmt: skip
"""Errata, each in both wordings."""
