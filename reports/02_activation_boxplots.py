"""Figures 2 and 3: the activations of the first 20 neurons of layers 1, 5 and 9.

A sigmoid network of nine hidden layers of 256 neurons and its output, on one minibatch. With
zero-sum weights every neuron uses its range around ½, at initialisation and still after ten epochs;
with standard weights under Glorot's initialisation each neuron of layer 9 is a constant of its own
(Kutsuna, ECML-PKDD 2019, Figures 2 and 3). Whiskers stand at the 1 and 99 % quantiles.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from recipe import Number, Recipe, Run, minibatch, number
from torch import Tensor, nn

import shiftscope as ss

WIDTH, DEPTH, ROWS, EPOCHS = 256, 9, 256, 10
LAYERS = (1, 5, 9)
WHISKER, QUARTILE = 2.3263478740, 0.6744897502
"""Quantiles 99 % and 75 % of the standard normal distribution."""

INITIAL, TRAINED, GLOROT = (
    "zero-sum weights, initial",
    "zero-sum weights, trained",
    "standard weights, initial",
)


def build(x: Tensor, seed: int, zero_sum: bool) -> nn.Sequential:
    """A network as the paper initialises it: zero-sum weights are rescaled on the minibatch."""
    model = ss.experiments.mlp(x.shape[1], WIDTH, DEPTH, seed=seed)
    if zero_sum:
        ss.constrain(model, "lcw")
        ss.rescale_(model, x)
    return model


def measure(data: ss.experiments.Labelled, seed: int) -> dict[str, ss.Snapshot]:
    """All three panels of a row, at one seed."""
    x, _ = minibatch(data, ROWS, seed)
    model = build(x, seed, zero_sum=True)
    snapshots = {INITIAL: activations(model, x)}
    ss.experiments.train(model, data, EPOCHS, batch_size=128, seed=seed)
    snapshots[TRAINED] = activations(model, x)
    return snapshots | {GLOROT: activations(build(x, seed, zero_sum=False), x)}


def activations(model: nn.Module, x: Tensor) -> ss.Snapshot:
    """The sigmoids of the drawn layers, in double precision: layer 9 hardly varies."""
    sites = [str(2 * layer - 1) for layer in LAYERS]
    return ss.analyze(model, [x], sites=sites, dtype=torch.float64)


def neurons(snapshot: ss.Snapshot, layer: int) -> dict[str, np.ndarray]:
    """Columns of one layer, an entry a neuron."""
    frame = snapshot.neurons
    part = frame[frame["site"] == str(2 * layer - 1)]
    return {name: part[name].to_numpy() for name in ("a_mean", "a_q01", "a_q50", "a_q99")}


def decades_of_range(snapshot: ss.Snapshot, layer: int) -> float:
    """log10 of the range from 1 to 99 % of the median neuron."""
    found = neurons(snapshot, layer)
    return math.log10(np.median(found["a_q99"] - found["a_q01"]))


def expected_range(between: float, within: float) -> float:
    """The same if z is normal in each neuron and its means are normal over the neurons."""
    middle, reach = QUARTILE * math.sqrt(between), WHISKER * math.sqrt(within)
    ends = torch.sigmoid(torch.tensor([middle - reach, middle + reach], dtype=torch.float64))
    return math.log10(float(ends[1] - ends[0]))


def mean_field(first: float) -> list[tuple[float, float]]:
    """Variances of z between and within neurons, layer by layer, under standard Glorot weights.

    Args:
        first: Variance of z in layer 1, where inputs of zero mean give no shift.
    """
    power, share, found = first, 0.0, []
    for _ in range(DEPTH):
        found.append((power * share, power * (1 - share)))
        step = ss.theory.depth_map("sigmoid", std=math.sqrt(power))
        power, share = step.power, step(share)
    return found


def make(run: Run) -> tuple[Figure, list[Number]]:
    """All variants at every seed; the figure shows the first."""
    data = run.data()
    snapshots = [measure(data, seed) for seed in run.seeds]
    glorot = 2 / (data.x.shape[1] + WIDTH) * float(data.x.square().sum(1).mean())
    theory = mean_field(glorot)
    numbers = []
    for layer in LAYERS:
        predicted = {INITIAL: expected_range(0, 1), GLOROT: expected_range(*theory[layer - 1])}
        sources = {INITIAL: "Section 4.3: z ~ N(0, 1)", GLOROT: "mean-field theory"}
        for name in (INITIAL, TRAINED, GLOROT):
            chosen = [s[name] for s in snapshots]
            where = f"layer {layer}, {name}"
            ranges = [decades_of_range(s, layer) for s in chosen]
            paper, source = predicted.get(name), sources.get(name, "")
            label = f"log10 of the median neuron's range, {where}"
            numbers.append(number(label, ranges, run, ROWS, paper, source))
            middles = [float(neurons(s, layer)["a_mean"].mean()) for s in chosen]
            label = f"mean activation, {where}"
            numbers.append(number(label, middles, run, ROWS, 0.5, "symmetry of z; Figures 2, 3"))
            spreads = [float(neurons(s, layer)["a_mean"].std()) for s in chosen]
            numbers.append(number(f"spread of the neurons' means, {where}", spreads, run, ROWS))
    return draw(snapshots[0]), numbers


@ss.draw.drawing()
def draw(snapshots: dict[str, ss.Snapshot]) -> Figure:
    """A column each variant, a row each layer; one scale."""
    figure = Figure(figsize=(9, 5.6), dpi=120, layout="constrained")
    panels = figure.subplots(len(LAYERS), len(snapshots), sharey=True, squeeze=False)
    for row, layer in zip(panels, LAYERS, strict=True):
        for ax, (name, snapshot) in zip(row, snapshots.items(), strict=True):
            site = str(2 * layer - 1)
            ss.draw.neuron_boxes(snapshot, site, "a", order="index", first=20, ax=ax)
            ax.set_title(f"{name}\n" * (layer == LAYERS[0]) + f"layer {layer}", loc="left")
            ax.set_ylim(-0.03, 1.03)
            ax.set_xlabel("the first 20 neurons" if layer == LAYERS[-1] else "")
            ax.set_ylabel("activation" if name == INITIAL else "")
    return figure


main = Recipe(__file__, make, seeds=10, quick=2)

if __name__ == "__main__":
    main()
