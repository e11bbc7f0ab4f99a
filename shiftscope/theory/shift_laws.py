"""What the propositions imply for whole layers: η = ξ, total variance, rescaling, asymmetry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

from shiftscope.theory.activations import gains
from shiftscope.theory.claims import Bench, Case, Claim, Comparison, Kind
from shiftscope.theory.montecarlo import compare_ratio, differs, identity
from shiftscope.theory.propositions import source, weights
from shiftscope.theory.samplers import LAWS, Noise

__all__ = ["SHIFT_LAWS", "law_case"]

_WIDTH = 32
"""Fan-in, fan-out and rows of one replicate of the layer-wide laws."""
_PAPER = "Kutsuna (2019)"

Ratio = Literal["asymmetry", "per-neuron asymmetry", "share"]


def _square(bench: Bench) -> Tensor:
    return weights(bench, rows=16)


def _mean_norms(bench: Bench) -> list[Comparison]:
    w = _square(bench).square()
    return [identity("mean ξ_j", float(w.sum(1).mean()), float(w.sum(0).mean()))]


def _each_norm(bench: Bench) -> list[Comparison]:
    w = _square(bench).square()
    pairs = zip(w.sum(1).tolist(), w.sum(0).tolist(), strict=True)
    return [identity(f"ξ[{j}]", eta, xi) for j, (eta, xi) in enumerate(pairs)]


def _constant_norms(bench: Bench) -> list[Comparison]:
    """Rows and columns of constant norm: a signed, scaled orthogonal matrix."""
    w = 3.0 * torch.linalg.qr(_square(bench))[0]
    return [identity(f"ξ[{j}]", 9.0, xi) for j, xi in enumerate(w.square().sum(0).tolist())]


def _fan_identity(bench: Bench) -> list[Comparison]:
    w = weights(bench, rows=24).square()
    ratio = w.shape[0] / w.shape[1]
    return [identity("mean ξ_j", ratio * float(w.sum(1).mean()), float(w.sum(0).mean()))]


def _rows(bench: Bench, gamma: float) -> tuple[Tensor, Tensor]:
    """Weights, and 512 outputs of them: enough for identities."""
    w = weights(bench)
    return w, source(bench, "laplace", gamma).draw(bench.generator, 512)


def _split(z: Tensor) -> tuple[float, float, float]:
    """Within, between and pooled variance of outputs [rows, neurons]."""
    within = z.var(dim=0, correction=0).mean()
    between = z.mean(dim=0).var(correction=0)
    return float(within), float(between), float(z.var(correction=0))


def _total_variance(bench: Bench) -> list[Comparison]:
    w, a = _rows(bench, 0.8)
    within, between, pooled = _split(a @ w.T)
    centred = a - a.mean(dim=0)
    covariance = centred.T @ centred / a.shape[0]
    quadratic = ((w @ covariance) * w).sum(dim=1).mean()
    means = (w @ a.mean(dim=0)).var(correction=0)
    return [
        identity("pooled variance", within + between, pooled),
        identity("within variance", float(quadratic), within),
        identity("between variance", float(means), between),
    ]


def _no_between(bench: Bench) -> list[Comparison]:
    w, a = _rows(bench, 0.8)
    within, _, pooled = _split(a @ w.T)
    return [identity("pooled variance", within, pooled)]


def _rescaled(bench: Bench, compare: Callable[[str, float, float], Comparison]) -> list[Comparison]:
    kappa = 2.5
    w, a = _rows(bench, 0.8)
    before, after = _split(a @ w.T), _split(a @ (kappa * w).T)
    grad = torch.randn(
        (512, w.shape[0]),
        generator=bench.generator,
        device=bench.generator.device,
        dtype=torch.float64,
    )
    backward = [float((grad @ (k * w)).var(correction=0)) for k in (1.0, kappa)]
    names = ("within", "between", "pooled")
    out = [
        compare(f"κ² {n}", kappa**2, y / x) for n, x, y in zip(names, before, after, strict=True)
    ]
    return [*out, compare("κ² backward", kappa**2, backward[1] / backward[0])]


def _replicates(
    what: Ratio, inputs: Noise, gamma: float, spread: Noise, zero_sum: bool
) -> Callable[[Generator, int], tuple[Tensor, Tensor]]:
    """Numerators and denominators of a layer-wide ratio over fresh weights and rows.

    All parts are unbiased: within with N - 1, between less the sampling noise within/N of the
    means, so that the ratio of expectations is the law itself, without finite-size terms.
    """

    def draw(generator: Generator, count: int) -> tuple[Tensor, Tensor]:
        w = spread(generator, (count, _WIDTH, _WIDTH))
        if zero_sum:
            w = w - w.mean(dim=2, keepdim=True)
        a = inputs(generator, (count, _WIDTH, _WIDTH)) + gamma
        z = a @ w.transpose(1, 2)
        within = z.var(dim=1, correction=1).mean(dim=1)
        between = z.mean(dim=1).var(dim=1, correction=1) - within / _WIDTH
        backward = w.square().sum(dim=1).mean(dim=1)
        if what == "share":
            return between, within + between
        return (within + between if what == "asymmetry" else within), backward

    return draw


def law_case(
    name: str,
    what: Ratio,
    predicted: float,
    *,
    inputs: Noise = LAWS["gaussian"].noise,
    gamma: float = 1.0,
    spread: Noise = LAWS["gaussian"].noise,
    zero_sum: bool = False,
    text: str = "",
    kind: Kind = "claim",
) -> Case:
    """A case of the asymmetry law or of the shift share.

    Args:
        name: Name of the case.
        what: Which ratio; asymmetries are per unit input variance.
        predicted: Its predicted value.
        inputs: Noise of unit variance and mean 0 for the inputs, to which γ is added.
        gamma: Mean of the inputs in units of their σ.
        spread: Law of the weights.
        zero_sum: Centre the rows of the weights (LCW).
        text: The assumptions in words.
        kind: What the case is for.
    """
    draw = _replicates(what, inputs, gamma, spread, zero_sum)

    def measure(bench: Bench) -> list[Comparison]:
        return compare_ratio(bench, draw, predicted, what, _WIDTH)

    rows = "zero-sum" if zero_sum else "iid"
    words = text or f"inputs of unit variance, γ/σ = {gamma:g}"
    return Case(name, f"{words}; {rows} weights, square", measure, kind)


def _sigmoid(generator: Generator, shape: tuple[int, ...]) -> Tensor:
    """Sigmoid outputs of standard normal preactivations, standardised."""
    value = gains("sigmoid")
    a = torch.sigmoid(LAWS["gaussian"].noise(generator, shape))
    return a.sub_(value.mean).div_(value.variance**0.5)


def _ratio(gamma: float) -> tuple[float, float]:
    """Predicted asymmetry and share at γ/σ."""
    return 1 + gamma**2, gamma**2 / (1 + gamma**2)


def _laws(index: int, what: Ratio) -> tuple[Case, ...]:
    """The positive cases shared by the asymmetry law and the shift share."""
    sigmoid = gains("sigmoid").mean / gains("sigmoid").variance ** 0.5
    uniform = LAWS["uniform"].noise
    return (
        law_case("gaussian, γ = σ", what, _ratio(1.0)[index]),
        law_case("laplace, γ < 0", what, _ratio(-2.0)[index], inputs=LAWS["laplace"].noise,
                 gamma=-2.0, spread=LAWS["signs"].noise),
        law_case("Fig. 1: W ~ U(−1,1), A ~ U(0,1)", what, _ratio(3**0.5)[index], inputs=uniform,
                 gamma=3**0.5, spread=uniform),
        law_case("after sigmoid", what, _ratio(sigmoid)[index], inputs=_sigmoid, gamma=sigmoid,
                 text="inputs sigmoid(N(0, 1)): γ = 1/2, σ² = 0.043379"),
        law_case("no shift, γ = 0", what, _ratio(0.0)[index], inputs=LAWS["rare"].noise,
                 gamma=0.0),
        law_case("zero-sum rows", what, _ratio(0.0)[index], zero_sum=True, gamma=2.0),
        law_case("zero-sum rows, law kept", what, _ratio(2.0)[index], zero_sum=True, gamma=2.0,
                 kind="negative control"),
    )  # fmt: skip


SHIFT_LAWS = (
    Claim(
        "eta_xi",
        "Row and column norms",
        f"{_PAPER}, Section 4.1 and Appendix A",
        "mean η_i = mean ξ_j for square W; ξ̄ = (m_out/m_in) η̄ in general",
        (4, 5),
        (
            Case("square, means", "random square W", _mean_norms, random=False),
            Case("constant norms", "scaled orthogonal W", _constant_norms, random=False),
            Case("rectangular", "24 × 16 weights", _fan_identity, random=False),
            Case("norm by norm", "random square W", _each_norm, "negative control", random=False),
        ),
    ),
    Claim(
        "total_variance",
        "Pooled variance = within + between",
        f"law of total variance; {_PAPER}, Section 4.1",
        "V_pool(z) = mean_i w_iᵀΣw_i + Var_i(w_i·μ̂)",
        (1, 2, 4),
        (
            Case("identity", "any weights, any rows", _total_variance, random=False),
            Case("between left out", "γ ≠ 0", _no_between, "negative control", random=False),
        ),
    ),
    Claim(
        "asymmetry",
        "Forward over backward gain",
        f"{_PAPER}, Section 4.1, made exact for iid weights",
        "A_fw / A_bw = 1 + γ²/σ²",
        (1, 4, 5),
        _laws(0, "asymmetry"),
    ),
    Claim(
        "shift_share",
        "Between-neuron share of the pooled variance",
        f"{_PAPER}, Figure 1, made exact for iid weights",
        "share = γ² / (γ² + σ²)",
        (1, 3, 4),
        _laws(1, "share"),
    ),
)
"""Layer-wide claims."""


def rescaling_case(printed: bool) -> Case:
    """Section 4.1's remark on κW for weights that are not zero-sum, as printed or put right."""
    compare = differs if printed else identity
    return Case(
        "as printed: not κ²" if printed else "corrected: κ² in every variance",
        "κ = 2.5, weights not zero-sum, γ = 0.8",
        lambda bench: _rescaled(bench, compare),
        "as printed" if printed else "corrected",
        random=False,
    )
