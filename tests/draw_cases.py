"""Synthetic snapshots for the drawings: frames with known numbers, shifted, healthy, with holes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from shiftscope.columns import quantile_names
from shiftscope.site_table import SITE_COLUMNS
from shiftscope.snapshot import NEURON_COLUMNS, Snapshot

NORMAL = np.array([-2.3263479, -0.6744898, 0.0, 0.6744898, 2.3263479])
HOSTILE = "WWWm$x_{1$\n\x1b[31m<b>" + "a" * 300 + "日本\u202e"


@dataclass
class Blame:
    """What a drawing reads of a finding."""

    cause: str
    severity: str
    sites: tuple[str, ...]
    threshold: tuple[str, float]
    evidence: dict[str, Any] = field(default_factory=dict)


def mesh(ax: Axes) -> QuadMesh:
    """The coloured cells of a map over depth and step."""
    (found,) = (item for item in ax.collections if isinstance(item, QuadMesh))
    return found


def with_frames(sites: pd.DataFrame, neurons: pd.DataFrame, pictures: Any = None) -> Snapshot:
    """A snapshot whose tables are given instead of derived from records."""
    snapshot = Snapshot(records={}, pictures=pictures or {})
    vars(snapshot).update(sites=sites, neurons=neurons)  # fills the cached properties
    return snapshot


def make(
    layers: int = 5,
    width: int = 16,
    *,
    shifted: bool = True,
    loss: bool = True,
    holes: float = 0.0,
    prefix: str = "net.",
    seed: int = 0,
) -> Snapshot:
    """A sigmoid network of so many layers, each a linear site and an activation site."""
    rng = np.random.default_rng(seed)
    pairs = [_layer(rng, layer, layers, width, shifted, loss, prefix) for layer in range(layers)]
    sites = pd.DataFrame([row for rows, _, _ in pairs for row in rows], columns=list(SITE_COLUMNS))
    parts = [part for _, tables, _ in pairs for part in tables]
    neurons = pd.concat(parts) if parts else pd.DataFrame(columns=list(NEURON_COLUMNS))
    neurons = neurons.reindex(columns=list(NEURON_COLUMNS)).reset_index(drop=True)
    pictures = {rows[0]["site"]: picture for rows, _, picture in pairs[:3]}
    for frame in (sites, neurons) if holes else ():
        numbers = frame.select_dtypes("float").columns
        frame[numbers] = frame[numbers].mask(rng.random((len(frame), len(numbers))) < holes)
    return with_frames(sites, neurons, pictures)


def blames(snapshot: Snapshot) -> list[Blame]:
    """Findings about the last sites, worst first."""
    linear = list(snapshot.sites["site"][snapshot.sites["kind"] == "linear"])
    return [
        Blame("vanishing_gradient", "critical", tuple(linear[:2]), ("total_decay", 3.3)),
        Blame("activation_shift", "serious", tuple(linear[-2:]), ("shift_share", 0.5)),
        Blame("dead_units", "watch", tuple(linear[-1:]), ("dead_watch", 0.25)),
    ]


def _layer(
    rng: np.random.Generator,
    layer: int,
    layers: int,
    width: int,
    shifted: bool,
    loss: bool,
    prefix: str,
) -> tuple[list[dict[str, Any]], list[pd.DataFrame], dict[str, Any]]:
    mean = rng.normal(0, 1.0 if shifted else 0.1, width)
    std = rng.uniform(0.04, 0.06, width) if shifted else rng.uniform(0.9, 1.1, width)
    decay = (-0.8 if shifted else -0.02) * (layers - 1 - layer)
    within, between = float(np.mean(std**2)), float(np.var(mean))
    share = between / (between + within)
    linear = {
        **{"site": f"{prefix}{2 * layer}", "kind": "linear", "op": "linear", "order": 2 * layer},
        **{"neurons": width, "count": 256, "shift_share": share, "shift_share_se": 0.01},
        **{"within_var": within, "between_var": between, "eta": 1.0, "xi": 1.0},
        **{"eta_measured": 1.1, "xi_measured": 0.9, "mu_norm": 2.0},
        "log10_grad_z_var": decay if loss else np.nan,
    }
    activation = {
        **linear,
        **{"site": f"{prefix}{2 * layer + 1}:sigmoid", "kind": "activation", "op": "sigmoid"},
        **{"phi_fw": 0.043, "phi_fw_theory": 0.0434, "phi_bw": 0.046 if loss else np.nan},
        **{"phi_bw_theory": 0.0448, "saturated": 0.1, "dead": 0, "order": 2 * layer + 1},
        **dict.fromkeys(("eta", "xi", "eta_measured", "xi_measured", "mu_norm"), np.nan),
    }
    z = mean + std * NORMAL[:, None]
    cosine = np.clip(mean / 4.0, -1, 1)
    common = {
        **{"neuron": np.arange(width), "count": 256.0, "z_mean": mean, "z_var": std**2},
        "grad_z_var": 10.0 ** (decay + rng.normal(0, 0.2, width)) if loss else np.nan,
        **dict(zip(quantile_names("z"), z, strict=True)),
    }
    weights = {
        **{"weight_norm": 2.0, "bias": 0.25, "theta_ones": np.arccos(0.9 * cosine)},
        **{"theta_mean": np.arccos(cosine), "shift_predicted": mean, "z_mean": mean + 0.25},
    }
    a = dict(zip(quantile_names("a"), 1 / (1 + np.exp(-z)), strict=True))
    tables = [
        pd.DataFrame({"site": linear["site"], **common, **weights}, index=range(width)),
        pd.DataFrame({"site": activation["site"], **common, **a}, index=range(width)),
    ]
    w, inputs = rng.uniform(-1, 1, (width, 12)), rng.uniform(0, 1, (12, 10))
    return [linear, activation], tables, {"W": w, "A": inputs, "Z": w @ inputs}
