"""The figures of a report: which ones, of which sites, with the words that stand beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from shiftscope.draw.angles import angle_histograms
from shiftscope.draw.boxes import neuron_boxes
from shiftscope.draw.depth import profile_over_depth
from shiftscope.draw.heatmaps import stripes
from shiftscope.draw.layers import layer_boxes
from shiftscope.draw.named_figure import NamedFigure, sentence
from shiftscope.draw.names import plain_name, plain_names, thinned
from shiftscope.draw.pooling import stands_for_all
from shiftscope.draw.predicted import predicted_against_measured
from shiftscope.draw.profile import depth_profile
from shiftscope.draw.quantiles import BANDS, BOXES
from shiftscope.draw.style import MANY, drawing, new_figure
from shiftscope.draw.tables import by_site, column
from shiftscope.given import expect
from shiftscope.prediction import DepthPrediction, predict_depth
from shiftscope.snapshot import Snapshot

if TYPE_CHECKING:
    from shiftscope.findings import Finding

__all__ = ["figures", "ranked_sites"]

_SHOWN = 3
"""Sites whose neurons are shown: the first, a middle or the worst one, the last."""


def figures(snapshot: Snapshot, findings: Sequence[Finding] = ()) -> list[NamedFigure]:
    """Draw the figures of a report.

    Args:
        snapshot: What was measured.
        findings: What was concluded, worst first; their sites are shown first and marked.

    Returns:
        The figures that this snapshot has data for, most telling first; never an empty one. A
        snapshot without sites has none.

    Raises:
        UsageError: It is no snapshot.
    """
    expect("snapshot", snapshot, Snapshot)
    drawn = [
        _profile(snapshot, findings),
        _layers(snapshot),
        _neurons(snapshot, findings),
        _stripes(snapshot),
        _angles(snapshot),
        _predicted(snapshot, findings),
        _over_depth(snapshot),
    ]
    return [figure for figure in drawn if figure is not None]


def ranked_sites(snapshot: Snapshot, findings: Sequence[Finding] = ()) -> list[str]:
    """Sites from the most to the least in need of a look.

    Args:
        snapshot: What was measured.
        findings: What was concluded, worst first.

    Returns:
        The sites of findings in their order, then all others by falling shift share.
    """
    sites = snapshot.sites
    share = column(sites, "shift_share")
    order = np.argsort(-np.nan_to_num(share, nan=-1.0), kind="stable")
    blamed = [site for finding in findings for site in finding.sites]
    known = set(sites["site"])
    every = [*(s for s in blamed if s in known), *sites["site"].to_numpy()[order]]
    return list(dict.fromkeys(map(str, every)))


def _profile(snapshot: Snapshot, findings: Sequence[Finding]) -> NamedFigure | None:
    sites = snapshot.sites
    if sites.empty:
        return None
    bad = bool((column(sites, "nonfinite") > 0).any())
    return NamedFigure(
        "depth-profile",
        "Along the depth",
        "Sites in the order of execution. Shift share with two standard errors; variance of z "
        "between and within neurons; variance of its gradient; gains measured (colour) and "
        "predicted (black). Variances and gains are on axes in decades; dashed lines are the "
        "thresholds of findings, marks at the foot the sites they concern."
        + (" Hatched: some values there were NaN or infinite." if bad else ""),
        sentence(
            f"Profiles of {len(sites)} sites.",
            _range("Shift share", column(sites, "shift_share"), "{:.2f}"),
            _range("log10 V(∇z)", column(sites, "log10_grad_z_var"), "{:.1f}"),
        ),
        depth_profile(snapshot, findings),
    )


def _layers(snapshot: Snapshot) -> NamedFigure | None:
    neurons, sites = snapshot.neurons, snapshot.sites
    linear = neurons[neurons["site"].isin(sites["site"][sites["kind"] == "linear"])]
    drawn = neurons if linear.empty else linear
    count = sum(_is_known(part, ("z_q50", "grad_z_var")) for _, part in by_site(drawn))
    if not count:
        return None
    reading = BOXES if count <= MANY else BANDS
    return NamedFigure(
        "layers",
        "Preactivations and their gradients, layer by layer",
        f"As Figure 4 of Kutsuna 2019: z and its gradient, all neurons of a layer pooled "
        f"({reading}). Below, the variance of the gradient in decades, spread over the neurons: "
        "on a linear axis a gradient that is gone looks like one that is small.",
        f"Distributions of z and of its gradient in {count} layers.",
        layer_boxes(snapshot),
    )


@drawing()
def _neurons(snapshot: Snapshot, findings: Sequence[Finding]) -> NamedFigure | None:
    names = _shown_activations(snapshot, findings)
    if not names:
        return None
    figure = new_figure(2.15 * len(names) + 0.2)
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for ax, name in zip(panels, names, strict=True):
        neuron_boxes(snapshot, name, ax=ax)
    _share_scale(list(panels))
    return NamedFigure(
        "neurons",
        "Neurons of single sites",
        f"As Figures 2 and 3 of Kutsuna 2019, up to {MANY} neurons: {BOXES}; more: {BANDS}. A "
        "healthy neuron uses the range of its activation; under shift neurons become constants at "
        "different heights. All panels have one scale.",
        f"Distributions of the neurons of {', '.join(plain_names(names))}.",
        figure,
    )


def _stripes(snapshot: Snapshot) -> NamedFigure | None:
    """The pictured site with the largest shift share; of equal ones (to 0.01) the widest."""
    pictured = snapshot.sites[snapshot.sites["site"].isin(list(snapshot.pictures))]
    if pictured.empty:
        return None
    share = np.round(np.nan_to_num(column(pictured, "shift_share"), nan=-1.0), 2)
    width = column(pictured, "neurons")
    name = str(pictured["site"].to_numpy()[np.lexsort((width, share))[-1]])
    return NamedFigure(
        "stripes",
        "Weights, inputs and preactivations",
        "As Figure 1 of Kutsuna 2019: a crop of W, A and Z. Horizontal stripes in Z are activation "
        "shift: neurons differ from each other more than from sample to sample.",
        f"Heat maps of weights, inputs and preactivations of {plain_name(name)}.",
        stripes(snapshot, name),
    )


def _angles(snapshot: Snapshot) -> NamedFigure | None:
    count = _measured_sites(snapshot.neurons, ("theta_ones", "theta_mean"))
    if not count:
        return None
    return NamedFigure(
        "angles",
        "Angles of the weights",
        "Angles between each weight vector and the vector of ones (left) and the mean input "
        "(right), a row each site. The farther from 90 degrees, the larger the shift of that "
        "neuron.",
        f"Distributions of the angles of the weight vectors of {count} linear sites.",
        angle_histograms(snapshot),
    )


def _predicted(snapshot: Snapshot, findings: Sequence[Finding]) -> NamedFigure | None:
    neurons = snapshot.neurons
    known = neurons[np.isfinite(column(neurons, "shift_predicted") + column(neurons, "z_mean"))]
    have = set(known["site"])
    name = next((site for site in ranked_sites(snapshot, findings) if site in have), None)
    if name is None:
        return None
    return NamedFigure(
        "predicted",
        "Predicted against measured",
        "Left and middle: the mean of each preactivation against its prediction from weights and "
        "mean input (Kutsuna 2019, Proposition 2), at one site and at all of them; on the dashed "
        "line both agree. Right: the gains of each activation against theory.",
        f"Predicted against measured shift of {len(known)} neurons, and gains of activations.",
        predicted_against_measured(snapshot, name),
    )


def _over_depth(snapshot: Snapshot) -> NamedFigure | None:
    prediction = predict_depth(snapshot)
    if not np.isfinite(prediction.gradient_gain).any():
        return None
    cuts = len(prediction.cuts)
    return NamedFigure(
        "depth-prediction",
        "Depth profile, predicted and measured",
        "Coloured: measured. Black: mean-field theory for weights in random directions, from the "
        "norms of these weights, the moments of z and the mean input (Kutsuna 2019, Propositions 4 "
        "to 6; Schoenholz et al. 2017). Gradients start from the last layer of each chain. "
        "Training correlates neurons and leaves this line: the distance is what training did."
        + (
            f" In {cuts} places the layers form no chain, and the line starts again."
            if cuts
            else ""
        ),
        sentence(
            f"Predicted and measured shift share and gradient variance of {len(prediction.sites)} "
            "layers.",
            _chi(prediction),
        ),
        profile_over_depth(
            prediction.measured_share,
            prediction.measured_log10_grad_var,
            {"predicted": prediction},
            list(prediction.sites),
            prediction.chain,
        ),
    )


def _chi(prediction: DepthPrediction) -> str:
    """The gradient gain per layer in words, with the depth up to which such networks train."""
    told = f"Gradient gain per layer (median): predicted {prediction.predicted_chi:.3g}"
    if np.isfinite(prediction.measured_chi):
        told += f", measured {prediction.measured_chi:.3g}"
    depth = prediction.trainable_depth
    if not depth < 1000:
        return f"{told}."
    return f"{told}; at that rate 3.3 decades, the most seen in training, last {depth:.0f} layers."


def _shown_activations(snapshot: Snapshot, findings: Sequence[Finding]) -> list[str]:
    """The worst site with quantiles, and the first and last of its kind, in order of execution."""
    neurons = snapshot.neurons
    stream = "a_q50" if np.isfinite(column(neurons, "a_q50")).any() else "z_q50"
    have = list(dict.fromkeys(neurons["site"][np.isfinite(column(neurons, stream))].map(str)))
    if len(have) <= _SHOWN:
        return have
    worst = next(site for site in ranked_sites(snapshot, findings) if site in set(have))
    ends = [have[place] for place in thinned(len(have), _SHOWN)]
    chosen = {ends[0], worst, ends[-1]}
    return [site for site in have if site in (chosen if len(chosen) == _SHOWN else set(ends))]


def _share_scale(panels: Sequence[Axes]) -> None:
    # A collapsed layer on a scale of its own would look like a healthy one.
    limits = np.array([ax.get_ylim() for ax in panels if ax.has_data()])
    for ax in panels:
        if ax.has_data():
            ax.set_ylim(limits[:, 0].min(), limits[:, 1].max())


def _measured_sites(neurons: pd.DataFrame, columns: Sequence[str]) -> int:
    known = np.zeros(len(neurons), dtype=bool)
    for name in columns:
        known |= np.isfinite(column(neurons, name))
    return int(neurons["site"][known].nunique())


def _is_known(neurons: pd.DataFrame, columns: Sequence[str]) -> bool:
    """Whether a column is known of so many neurons of a site that they stand for it."""
    return any(stands_for_all(np.isfinite(column(neurons, name))) for name in columns)


def _range(label: str, values: np.ndarray[tuple[int], np.dtype[np.float64]], form: str) -> str:
    known = values[np.isfinite(values)]
    if not known.size:
        return f"{label} was not measured."
    first, last = form.format(known[0]), form.format(known[-1])
    return f"{label} from {first} at the first to {last} at the last site."
