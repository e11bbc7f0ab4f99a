"""The paper's experiments at CPU scale: what a correct implementation shows, at its tolerances.

Kutsuna, ECML-PKDD 2019: Figures 1 to 4, Propositions 2, 4 and 5, the gains of Section 4.2 and the
minibatch initialisation of Section 4.3. Networks of width 256 in float64; medians over three seeds
unless a row says otherwise. The tolerances are about four standard deviations of one seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from support import shared_path
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

import shiftscope as ss
from shiftscope.snapshot import Snapshot

Array = npt.NDArray[np.float64]
Data = Literal["gauss", "fields", "cifar10"]

SEEDS = (0, 1, 2)
WIDTH, DEPTH, ROWS = 256, 20, 100
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}


def gauss(rows: int, generator: torch.Generator) -> Tensor:
    """Independent standard normal inputs."""
    return torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)


def fields(rows: int, generator: torch.Generator) -> Tensor:
    """Colour images with the 1/f spectrum of natural ones, standardised by channel."""
    size = 32
    noise = torch.randn(rows, 3, size, size, generator=generator, dtype=torch.float64)
    frequency = torch.fft.fftfreq(size, dtype=torch.float64)
    radius = (frequency[:, None] ** 2 + frequency[None, :] ** 2).sqrt().clamp_min(1 / size)
    return by_channel(torch.fft.ifft2(torch.fft.fft2(noise) / radius).real)


def cifar10(rows: int, generator: torch.Generator) -> Tensor:
    """The exact pixels of CIFAR-10 images, standardised by channel."""
    with np.load(shared_path("data/cifar10/cifar10_exact.npz")) as file:
        images = file["x_train"]
    chosen = torch.randperm(len(images), generator=generator)[:rows]
    return by_channel(torch.from_numpy(images[chosen.numpy()]).double())


def by_channel(images: Tensor) -> Tensor:
    """Zero mean and unit variance over rows and pixels of each channel; flattened."""
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    return ((images - mean) / std).flatten(1)


INPUTS: dict[Data, Callable[[int, torch.Generator], Tensor]] = {
    "gauss": gauss,
    "fields": fields,
    "cifar10": cifar10,
}


def prepared(
    activation: str, zero_sum: bool, seed: int, data: Data, depth: int, rows: int, rescale: bool
) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network as the paper initialises it, with the batch it is measured on."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = INPUTS[data](rows, generator)
    y = torch.randint(10, (rows,), generator=generator)
    build, dtype = ACTIVATIONS[activation], torch.float64
    model = ss.experiments.mlp(x.shape[1], WIDTH, depth, activation=build, seed=seed, dtype=dtype)
    if zero_sum:
        ss.constrain(model, "lcw")
    if rescale:
        ss.rescale_(model, x)
    return model, x, y


@cache
def measured(
    activation: str,
    zero_sum: bool,
    seed: int,
    data: Data = "gauss",
    depth: int = DEPTH,
    rows: int = ROWS,
    rescale: bool = True,
) -> Snapshot:
    """The snapshot of such a network, cross entropy behind it."""
    model, x, y = prepared(activation, zero_sum, seed, data, depth, rows, rescale)
    return ss.analyze(model, [(x, y)], cross_entropy, dtype=torch.float64)


def hidden(snapshot: Snapshot, column: str) -> Array:
    """A column of the site table at the hidden linear layers, from input to output."""
    sites = snapshot.sites
    return sites[column][sites["kind"] == "linear"].to_numpy(dtype=np.float64)[:-1]


def slope(snapshot: Snapshot) -> float:
    """Decades of the gradient variance per layer, counted towards the output."""
    decades = hidden(snapshot, "log10_grad_z_var")
    return float(np.polyfit(np.arange(len(decades)), decades, 1)[0])


def median(
    statistic: Callable[[Snapshot], float], activation: str, zero_sum: bool, **options: Any
) -> float:
    """Median of a statistic over the seeds."""
    values = [statistic(measured(activation, zero_sum, seed, **options)) for seed in SEEDS]
    return float(np.median(values))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("centred", ["nothing", "weights", "inputs"])
def test_a1_stripes_of_figure_1(centred: str, seed: int) -> None:
    """A1, for each seed: three quarters of the variance lie between rows, none after centring."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(100, 100, bias=False, dtype=torch.float64)
    nn.init.uniform_(layer.weight, -1, 1, generator=generator)
    inputs = torch.rand(100, 100, generator=generator, dtype=torch.float64)
    if centred == "weights":
        ss.constrain(layer, "lcw")
    if centred == "inputs":
        inputs -= 0.5
    share = ss.analyze(layer, [inputs]).sites["shift_share_raw"].item()
    if centred == "nothing":
        assert share == pytest.approx(0.75, abs=0.10)
    else:
        assert share <= 0.02


SIGMOID = {
    0.5: ((0.055822, 0.056035), (0.236, 0.237)),
    1.0: ((0.043379, 0.044836), (0.208, 0.211)),
    2.0: ((0.024643, 0.029025), (0.157, 0.170)),
}
"""σ -> (variance ratios; the ratios of standard deviations that the paper prints)."""


@pytest.mark.parametrize("std", SIGMOID)
def test_a2_gains_of_the_sigmoid(std: float) -> None:
    variances, printed = SIGMOID[std]
    gains = ss.theory.gains("sigmoid", 0.0, std)
    assert (gains.phi_fw, gains.phi_bw) == pytest.approx(variances, abs=1e-5)
    assert np.sqrt((gains.phi_fw, gains.phi_bw)) == pytest.approx(printed, abs=1e-3)


def test_a3_gains_of_relu_and_tanh() -> None:
    relu, tanh = ss.theory.gains("relu"), ss.theory.gains("tanh")
    assert (relu.phi_fw, relu.phi_bw) == pytest.approx((0.340845, 0.5), abs=1e-5)
    assert (tanh.phi_fw, tanh.phi_bw) == pytest.approx((0.394294, 0.464403), abs=1e-5)


@pytest.mark.parametrize(
    ("activation", "std"),
    [("sigmoid", 0.5), ("sigmoid", 1.0), ("sigmoid", 2.0), ("relu", 1.0), ("tanh", 1.0)],
)
def test_a4_gains_by_monte_carlo(activation: str, std: float) -> None:
    """A4: a million rows through the probes agree with quadrature to 0.2 %."""
    theory = ss.theory.gains(activation, 0.0, std)
    errors = [monte_carlo(activation, std, seed) / (theory.phi_fw, theory.phi_bw) for seed in SEEDS]
    assert np.median(errors, axis=0) == pytest.approx(1.0, abs=0.002)


def monte_carlo(activation: str, std: float, seed: int, rows: int = 10**6) -> Array:
    """Measured gains of normal rows; the gradient that arrives is ±1, independent of them."""
    generator = torch.Generator().manual_seed(seed)
    z = std * torch.randn(rows, 1, generator=generator)
    signs = 2.0 * torch.randint(2, (rows, 1), generator=generator) - 1
    model = nn.Sequential(ACTIVATIONS[activation]())
    snapshot = ss.analyze(model, [(z, signs)], lambda out, sign: (out * sign).sum(), rows=2)
    return snapshot.sites[["phi_fw", "phi_bw"]].to_numpy(dtype=np.float64)[0]


@pytest.mark.parametrize("data", ["gauss", "fields"])
def test_a5_gradients_vanish_in_standard_sigmoid_networks(data: Data) -> None:
    assert median(slope, "sigmoid", False, data=data) == pytest.approx(0.816, abs=0.04)


@pytest.mark.parametrize("data", ["gauss", "fields"])
def test_a6_gradients_stay_with_zero_sum_weights(data: Data) -> None:
    assert median(slope, "sigmoid", True, data=data) == pytest.approx(-0.014, abs=0.012)
    assert 1.2 <= median(first_to_last, "sigmoid", True, data=data) <= 3.5


def first_to_last(snapshot: Snapshot) -> float:
    """Gradient variance of the first hidden layer by that of the last."""
    variance = hidden(snapshot, "grad_z_var")
    return float(variance[0] / variance[-1])


def test_a7_zero_sum_weights_let_gradients_of_relu_and_tanh_grow() -> None:
    assert median(slope, "relu", True) == pytest.approx(-0.166, abs=0.010)
    assert median(slope, "tanh", True) == pytest.approx(-0.071, abs=0.008)


def test_a8_standard_relu_networks_keep_their_gradients() -> None:
    assert median(slope, "relu", False) == pytest.approx(0.0, abs=0.04)


@pytest.mark.parametrize(
    ("activation", "zero_sum", "ratio", "tolerance"),
    [
        ("sigmoid", False, 6.76, 0.6),
        ("sigmoid", True, 1.00, 0.02),
        ("relu", False, 1.45, 0.12),
    ],
)
def test_a9_linear_maps_amplify_forward_more_than_backward(
    activation: str, zero_sum: bool, ratio: float, tolerance: float
) -> None:
    assert median(asymmetry, activation, zero_sum) == pytest.approx(ratio, abs=tolerance)


def asymmetry(snapshot: Snapshot) -> float:
    """Pooled gain of the variance forward by that backward, mean over hidden layers 2 to 20."""
    outputs = snapshot.neurons.groupby("site", sort=False)
    inputs = snapshot.input_neurons.groupby("site", sort=False)
    forward, backward = [], []
    for site in list(inputs.groups)[1:-1]:
        into, out = inputs.get_group(site), outputs.get_group(site)
        forward.append(pooled(out, "z") / pooled(into, "a"))
        backward.append(pooled(into, "grad_a") / pooled(out, "grad_z"))
    return float(np.mean(forward) / np.mean(backward))


def pooled(frame: pd.DataFrame, stream: str) -> float:
    """Variance over neurons and rows together."""
    within, means = frame[f"{stream}_var"], frame[f"{stream}_mean"]
    return float(within.mean() + means.var(ddof=0))


def test_a10_shift_share_of_standard_sigmoid_networks() -> None:
    shares = np.median(
        [hidden(measured("sigmoid", False, s), "shift_share") for s in SEEDS], axis=0
    )
    assert shares[1] == pytest.approx(0.85, abs=0.03)
    assert shares[4:].min() >= 0.99


@pytest.mark.parametrize(("data", "most"), [("gauss", 0.01), ("cifar10", 0.08)])
def test_a11_shift_share_with_zero_sum_weights(data: Data, most: float) -> None:
    """A11, in every hidden layer; the first one sees pixels, whose means differ a little."""
    shares = np.median(
        [hidden(measured("sigmoid", True, s, data=data), "shift_share") for s in SEEDS], axis=0
    )
    assert shares.max() <= most


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("zero_sum", [False, True])
def test_a12_proposition_2_is_an_identity(zero_sum: bool, seed: int) -> None:
    """A12, for each seed: E(z) − b = ‖w‖‖μ̂‖cos θ̂ to 1e-10 of ‖w‖‖μ̂‖, biases included."""
    model, x, y = prepared("sigmoid", zero_sum, seed, "gauss", DEPTH, ROWS, True)
    generator = torch.Generator().manual_seed(seed)
    for layer in model[::2]:
        nn.init.normal_(layer.bias, generator=generator)
    snapshot = ss.analyze(model, [(x, y)], cross_entropy)
    neurons = snapshot.neurons[snapshot.neurons["shift_predicted"].notna()]
    scale = neurons["weight_norm"] * neurons["site"].map(
        snapshot.sites.set_index("site")["mu_norm"]
    )
    error = neurons["z_mean"] - neurons["bias"] - scale * np.cos(neurons["theta_mean"])
    assert len(neurons) == DEPTH * WIDTH + 10
    assert (error.abs() / scale).max() <= 1e-10


FIGURES_2_AND_3 = {"depth": 9, "rows": 256}
"""Ten layers: nine hidden ones and the output."""


def spread(snapshot: Snapshot) -> float:
    """Range from 1 to 99 % of the median neuron's activation in hidden layer 9."""
    layer = snapshot.neurons[snapshot.neurons["site"] == "17"]
    return float((layer["a_q99"] - layer["a_q01"]).median())


def middle(snapshot: Snapshot) -> float:
    """Median activation of the median neuron in hidden layer 9."""
    return float(snapshot.neurons.query("site == '17'")["a_q50"].median())


@pytest.mark.parametrize("data", ["gauss", "fields"])
def test_a13_activations_of_figures_2_and_3(data: Data) -> None:
    glorot = {**FIGURES_2_AND_3, "rescale": False, "data": data}
    assert median(spread, "sigmoid", False, **glorot) <= 1e-4
    zero_sum = {**FIGURES_2_AND_3, "data": data}
    assert median(spread, "sigmoid", True, **zero_sum) == pytest.approx(0.78, abs=0.06)
    assert median(middle, "sigmoid", True, **zero_sum) == pytest.approx(0.50, abs=0.02)


class Centred(nn.Module):
    """A linear map with w − mean(w) in place of w, written out: the naive twin of LCW."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


@pytest.mark.parametrize("seed", SEEDS)
def test_a14_training_zero_sum_weights_is_training_centred_ones(seed: int) -> None:
    """A14, for each seed: 30 steps with momentum and weight decay; row sums stay zero."""
    constrained, x, y = prepared("sigmoid", True, seed, "gauss", 5, 1920, True)
    naive = nn.Sequential(*[Centred(m) if len(list(m.parameters())) else m for m in constrained])
    data = ss.experiments.Labelled(x, y)
    for model in (constrained, naive):
        ss.experiments.train(model, data, epochs=1, seed=seed)
    for ours, theirs in zip(constrained[::2], naive[::2], strict=True):
        weight, twin = ours.weight.detach(), theirs.weight.detach()
        twin = twin - twin.mean(1, keepdim=True)
        assert (weight - twin).abs().max() <= 1e-10 * twin.abs().max()
        bound = 1e-12 * weight.norm(dim=1) * math.sqrt(weight.shape[1])
        assert bool((weight.sum(1).abs() <= bound).all())


def test_a14_is_a_property_of_gradient_descent() -> None:
    """The negative control: Adam's element-wise steps depend on the coordinates of the weights."""
    constrained, x, y = prepared("sigmoid", True, 0, "gauss", 2, ROWS, True)
    naive = nn.Sequential(*[Centred(m) if len(list(m.parameters())) else m for m in constrained])
    for model in (constrained, naive):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(30):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    twin = naive[0].weight.detach()
    twin = twin - twin.mean(1, keepdim=True)
    assert (constrained[0].weight - twin).abs().max() > 0.01 * twin.abs().max()
