"""Figure 1: activation shift as horizontal stripes.

W (100×100, uniform on −1 to 1) times A (uniform on 0 to 1): every input has the same mean, yet the
rows of Z = W A have different ones, since each weight vector meets the vector of ones at another
angle (Kutsuna, ECML-PKDD 2019, Proposition 1). Rows of W that sum to zero have no stripes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from recipe import Number, Recipe, Run, number
from torch import nn

import shiftscope as ss

SIZE = 100
GAMMA, VARIANCE = 1 / 2, 1 / 12
"""Mean and variance of a uniform input."""

VARIANTS = {"standard weights": False, "zero-sum weights": True}


def measure(zero_sum: bool, seed: int) -> ss.Snapshot:
    """One draw of W and A through the probes."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(SIZE, SIZE, bias=False, dtype=torch.float64)
    nn.init.uniform_(layer.weight, -1, 1, generator=generator)
    inputs = torch.rand(SIZE, SIZE, generator=generator, dtype=torch.float64)
    if zero_sum:
        ss.constrain(layer, "lcw")
    return ss.analyze(nn.Sequential(layer), [inputs])


def share(snapshot: ss.Snapshot) -> float:
    """Share of the variance of Z between rows, corrected for the error of their means.

    The table's own share is never negative, which would bias a mean over seeds at zero.
    """
    raw = float(snapshot.sites["shift_share_raw"].item())
    return (raw - 1 / SIZE) / (1 - 1 / SIZE)


def asymmetry(snapshot: ss.Snapshot) -> float:
    """How much more W amplifies the pooled variance forward than backward."""
    site = snapshot.sites.iloc[0]
    pooled = float(site["eta_measured"]) / (1 - share(snapshot))
    return pooled / float(site["xi"])


def proposition_1(snapshot: ss.Snapshot) -> float:
    """Slope of the measured row means on γ√m‖w‖cosθ, through the origin."""
    rows = snapshot.neurons
    length = GAMMA * math.sqrt(SIZE) * rows["weight_norm"]
    predicted, measured = length * np.cos(rows["theta_ones"]), rows["z_mean"]
    return float((predicted * measured).sum() / (predicted**2).sum())


def make(run: Run) -> tuple[Figure, list[Number]]:
    """Both variants at every seed; the figure shows the first."""
    snapshots = {name: [measure(zero, s) for s in run.seeds] for name, zero in VARIANTS.items()}
    pictures = {name: measured[0].pictures["0"] for name, measured in snapshots.items()}
    limit = 1 + GAMMA**2 / VARIANCE
    expected = {
        "standard weights": (1 - 1 / limit, limit, "γ²/(γ²+σ²)", "1 + γ²/σ²"),
        "zero-sum weights": (0.0, 1.0, "Proposition 3", "Proposition 4 with η = ξ"),
    }
    numbers = []
    for name, (between, ratio, says, tells) in expected.items():
        shares = [share(s) for s in snapshots[name]]
        ratios = [asymmetry(s) for s in snapshots[name]]
        numbers += [
            number(f"between-row share of V(Z), {name}", shares, run, SIZE, between, says),
            number(f"gain forward / gain backward, {name}", ratios, run, SIZE, ratio, tells),
        ]
    slopes = [proposition_1(s) for s in snapshots["standard weights"]]
    label = "slope of row means on γ√m‖w‖cosθ, standard weights"
    numbers.append(number(label, slopes, run, SIZE, 1.0, "Proposition 1"))
    return draw(pictures), numbers


@ss.draw.drawing()
def draw(pictures: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """A row each variant; Z has one scale."""
    figure = ss.draw.stripes(pictures, list(pictures))
    for row, name in zip(figure.subfigs, pictures, strict=True):
        row.suptitle(name, x=0.01, ha="left")
    return figure


main = Recipe(__file__, make, seeds=40, quick=8, images=False)

if __name__ == "__main__":
    main()
