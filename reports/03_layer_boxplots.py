"""Figure 4: preactivations and their gradients in every layer of a deep sigmoid network.

20 hidden layers of 256 neurons, 100 samples, cross entropy; all weights rescaled so that z has unit
variance in every layer (Kutsuna, ECML-PKDD 2019, Section 4.3). With standard weights z looks well
in every layer while its gradient dies on the way to the input: the shift passes forward only. With
zero-sum weights both stay, and the gradient even grows a little.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from recipe import Number, Recipe, Run, minibatch, number
from torch.nn.functional import cross_entropy

import shiftscope as ss

WIDTH, DEPTH, ROWS = 256, 20, 100

VARIANTS = {"standard weights": False, "zero-sum weights": True}


def measure(data: ss.experiments.Labelled, zero_sum: bool, seed: int) -> ss.Snapshot:
    """One network at its initialisation, in double precision: gradients fall by 16 decades."""
    x, y = minibatch(data, ROWS, seed)
    x = x.double()
    model = ss.experiments.mlp(x.shape[1], WIDTH, DEPTH, seed=seed, dtype=torch.float64)
    if zero_sum:
        ss.constrain(model, "lcw")
    ss.rescale_(model, x)
    sites = [str(2 * layer) for layer in range(DEPTH)]
    return ss.analyze(model, [(x, y)], cross_entropy, sites=sites)


def layers(snapshot: ss.Snapshot, column: str) -> np.ndarray:
    """A column of the site table: the hidden layers, from input to output."""
    return snapshot.sites[column].to_numpy(dtype=np.float64)


def slope(snapshot: ss.Snapshot) -> float:
    """Decades that V(∇z) gains in each layer, by least squares."""
    return float(np.polyfit(np.arange(DEPTH), layers(snapshot, "log10_grad_z_var"), 1)[0])


def decades(snapshot: ss.Snapshot) -> float:
    """log10 of V(∇z) in the first layer by that in the last."""
    logs = layers(snapshot, "log10_grad_z_var")
    return float(logs[0] - logs[-1])


def share(snapshot: ss.Snapshot, layer: int) -> float:
    """Shift share of z, corrected for sampling; negative where the means differ less than that."""
    raw = float(layers(snapshot, "shift_share_raw")[layer - 1])
    return (raw - 1 / ROWS) / (1 - 1 / ROWS)


def asymmetry(snapshot: ss.Snapshot) -> float:
    """Pooled gain forward by gain backward of the linear maps, mean over layers 2 to 20."""
    forward, backward = [], []
    inputs, outputs = by_site(snapshot.input_neurons), by_site(snapshot.neurons)
    for site in list(inputs)[1:]:
        into, out = inputs[site], outputs[site]
        forward.append(pooled(out, "z") / pooled(into, "a"))
        backward.append(into["grad_a_var"].mean() / out["grad_z_var"].mean())
    return float(np.mean(forward) / np.mean(backward))


def by_site(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table a site, in the order of execution."""
    return {str(name): part for name, part in frame.groupby("site", sort=False)}


def pooled(frame: pd.DataFrame, stream: str) -> float:
    """Variance over neurons and rows together."""
    return float(frame[f"{stream}_var"].mean() + frame[f"{stream}_mean"].var(ddof=0))


def make(run: Run) -> tuple[Figure, list[Number]]:
    """Both variants at every seed; the figure shows the first."""
    data = run.data()
    snapshots = {n: [measure(data, zero, s) for s in run.seeds] for n, zero in VARIANTS.items()}
    numbers = []
    for name, zero_sum in VARIANTS.items():
        step = ss.theory.depth_map("sigmoid", constrained=zero_sum)
        fall, gain = math.log10(step.chi), 1 + step.value_mean**2 / step.value_var
        theory = "mean-field theory"
        for label, statistic, paper, source in (
            ("decades of V(∇z) gained a layer", slope, -fall, theory),
            ("log10 V(∇z) in layer 1 / layer 20", decades, (DEPTH - 1) * fall, theory),
            ("shift share in layer 2", at(2), step(0.0), theory),
            ("shift share in layer 5", at(5), iterated(step, 4), theory),
            ("gain forward / gain backward", asymmetry, 1 if zero_sum else gain, "Section 4.1"),
        ):
            values = [statistic(snapshot) for snapshot in snapshots[name]]
            numbers.append(number(f"{label}, {name}", values, run, ROWS, paper, source))
    return draw({name: measured[0] for name, measured in snapshots.items()}), numbers


def at(layer: int) -> Callable[[ss.Snapshot], float]:
    """The shift share of one layer, as a statistic."""
    return lambda snapshot: share(snapshot, layer)


def iterated(step: Callable[[float], float], times: int) -> float:
    """The shift share so many layers behind one without shift, by the mean-field map."""
    found = 0.0
    for _ in range(times):
        found = step(found)
    return found


@ss.draw.drawing()
def draw(snapshots: dict[str, ss.Snapshot]) -> Figure:
    """The paper's two rows and, below them, the gradient in decades; a column each variant."""
    figure = Figure(figsize=(9, 7), dpi=120, layout="constrained")
    panels = figure.subplots(3, len(snapshots), sharex=True, squeeze=False)
    for column, (name, snapshot) in zip(panels.T, snapshots.items(), strict=True):
        ss.draw.preactivation_boxes(snapshot, ax=column[0])
        ss.draw.pooled_gradient_boxes(snapshot, ax=column[1])
        ss.draw.gradient_boxes(snapshot, ax=column[2])
        column[0].set_title(f"{name}\npreactivation z, pooled", loc="left")
        column[1].set_title("its gradient ∇z, pooled", loc="left")
        column[2].set_title("variance of ∇z, spread over neurons", loc="left")
        column[2].set_xticks(range(DEPTH), map(str, range(1, DEPTH + 1)), rotation=0, ha="center")
        column[2].set_xlabel("layer")
    for row in panels:
        low, high = np.array([ax.get_ylim() for ax in row]).T
        margin = 0.03 * (high.max() - low.min())
        for ax in row:
            ax.set_ylim(low.min() - margin, high.max() + margin)
        row[1].set_ylabel("")
    return figure


main = Recipe(__file__, make, seeds=12, quick=3)

if __name__ == "__main__":
    main()
