"""Figures 2 to 4: the drawn boxes and bands are the given quantiles."""

from __future__ import annotations

import numpy as np
import pytest
from draw_cases import NORMAL, make
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from run_cases import batch, network
from scipy.stats import norm
from standin import measure

import shiftscope as ss
from shiftscope.columns import QUANTILES, quantile_names
from shiftscope.draw.pooling import mixture
from shiftscope.draw.style import MANY


def drawn_boxes(ax: Axes) -> np.ndarray:
    """Quantiles read back from the artists of ``bxp``: ``[5, boxes]``."""
    assert len(ax.lines) == 5 * len(ax.patches)
    columns = []
    for box, lower, upper, _, _, median in zip(
        ax.patches,
        ax.lines[0::5],
        ax.lines[1::5],
        ax.lines[2::5],
        ax.lines[3::5],
        ax.lines[4::5],
        strict=True,
    ):
        heights = box.get_path().vertices[:, 1]
        ends = (lower.get_ydata()[-1], upper.get_ydata()[-1])
        columns.append((ends[0], heights.min(), median.get_ydata()[0], heights.max(), ends[1]))
    return np.array(columns).T


def test_boxes_have_the_given_quantiles() -> None:
    snapshot = make(width=20)
    ax = ss.draw.neuron_boxes(snapshot, "net.3:sigmoid", order="index")
    frame = snapshot.neurons.query("site == 'net.3:sigmoid'")
    np.testing.assert_allclose(drawn_boxes(ax), frame[quantile_names("a")].to_numpy().T)


def test_boxes_are_sorted_by_median_by_default() -> None:
    medians = drawn_boxes(ss.draw.neuron_boxes(make(width=20), "net.3:sigmoid"))[2]
    assert (np.diff(medians) >= 0).all()


def test_the_first_neurons_only() -> None:
    ax = ss.draw.neuron_boxes(make(width=40), "net.1:sigmoid", order="index", first=20)
    assert len(ax.patches) == 20
    assert "20 neurons" in ax.get_xlabel()


def test_many_neurons_are_bands_of_the_same_quantiles() -> None:
    snapshot = make(2, MANY + 1)
    ax = ss.draw.neuron_boxes(snapshot, "net.1:sigmoid")
    frame = snapshot.neurons.query("site == 'net.1:sigmoid'").sort_values("a_q50")
    outer, inner, median = (patch.get_data() for patch in ax.patches)
    np.testing.assert_allclose(outer.values, frame["a_q99"])
    np.testing.assert_allclose(outer.baseline, frame["a_q01"])
    np.testing.assert_allclose(inner.values, frame["a_q75"])
    np.testing.assert_allclose(inner.baseline, frame["a_q25"])
    np.testing.assert_allclose(median.values, frame["a_q50"])
    np.testing.assert_allclose(median.edges, np.arange(MANY + 2) - 0.5)


def test_a_measured_layer_between_gaps_is_still_drawn() -> None:
    table = np.full((5, 100), np.nan)
    table[:, 50] = NORMAL
    ax = ss.draw.boxes_by_layer([str(k) for k in range(100)], table)
    for patch in ax.patches:
        corners = patch.get_path().vertices
        assert np.ptp(corners[np.isfinite(corners).all(axis=1), 0]) == 1.0


def test_fifty_thousand_neurons_are_thinned_and_say_so() -> None:
    ax = ss.draw.neuron_boxes(make(1, 50_000), "net.1:sigmoid")
    assert len(ax.patches[0].get_data().values) == 1000
    assert "1000 evenly chosen" in ax.get_xlabel()


def test_neurons_that_were_not_measured_are_counted() -> None:
    snapshot = make(width=20)
    snapshot.neurons.loc[snapshot.neurons["neuron"] < 3, "a_q50"] = np.nan
    ax = ss.draw.neuron_boxes(snapshot, "net.1:sigmoid")
    assert len(ax.patches) == 17
    assert "3 of 20 not measured" in ax.get_xlabel()


def test_nothing_measured_is_said_in_words() -> None:
    snapshot = make(holes=1.0)
    ax = ss.draw.neuron_boxes(snapshot, "net.1:sigmoid")
    assert "Not measured" in ax.texts[0].get_text()


def test_an_unknown_site_is_refused() -> None:
    with pytest.raises(ss.UsageError, match="no site 'nowhere'"):
        ss.draw.neuron_boxes(make(), "nowhere")


def test_a_drawing_goes_on_the_axes_it_is_given() -> None:
    ax = Figure().subplots()
    assert ss.draw.neuron_boxes(make().neurons, "net.1:sigmoid", ax=ax) is ax


@pytest.mark.parametrize("layers", [1, 5, MANY, MANY + 1, 200])
def test_one_place_a_layer(layers: int) -> None:
    figure = ss.draw.layer_boxes(make(layers, 8))
    top, bottom = figure.axes
    for ax in (top, bottom):
        drawn = len(ax.patches) if layers <= MANY else len(ax.patches[0].get_data().values)
        assert drawn == layers
    colors = [to_hex(ax.patches[-1].get_edgecolor()).upper() for ax in (top, bottom)]
    assert colors == [ss.draw.COLORS["forward"], ss.draw.COLORS["backward"]]


def test_gradient_boxes_are_quantiles_over_neurons_of_the_log() -> None:
    snapshot = make(3, 30)
    boxes = drawn_boxes(ss.draw.gradient_boxes(snapshot))
    logs = np.log10(snapshot.neurons.query("site == 'net.2'")["grad_z_var"])
    np.testing.assert_allclose(boxes[:, 1], np.quantile(logs, QUANTILES))


def test_the_gradient_is_pooled_where_it_was_sampled() -> None:
    snapshot = make(3, 30)
    rng = np.random.default_rng(0)
    kept = {name: {"grad_z": rng.normal(size=30) + NORMAL[:, None]} for name in ("net.0", "net.4")}
    vars(snapshot)["quantiles"] = kept
    top, middle, bottom = ss.draw.layer_boxes(snapshot).axes
    assert len(top.patches) == len(bottom.patches) == 3
    drawn = drawn_boxes(middle)
    np.testing.assert_allclose(drawn[:, 1], mixture(kept["net.4"]["grad_z"]))
    assert drawn.shape == (5, 2)


def test_names_stand_level_where_they_fit() -> None:
    for prefix, angle in (("", 0.0), ("encoder.block.", 38.0)):
        ax = ss.draw.preactivation_boxes(make(12, 4, prefix=prefix))
        assert {label.get_rotation() for label in ax.get_xticklabels()} == {angle}


def test_equal_medians_are_sorted_by_their_spread() -> None:
    snapshot = make(width=20)
    columns = quantile_names("a")
    rows = snapshot.neurons["site"] == "net.1:sigmoid"
    spread = np.random.default_rng(0).permutation(20.0 + np.arange(20))
    snapshot.neurons.loc[rows, columns] = np.array([0, 0, 0, 1, 2]) * spread[:, None]
    drawn = drawn_boxes(ss.draw.neuron_boxes(snapshot, "net.1:sigmoid"))
    assert (np.diff(drawn[4]) > 0).all()


def test_a_vanished_gradient_is_a_gap_not_a_small_number() -> None:
    snapshot = make(3, 30)
    snapshot.neurons.loc[snapshot.neurons["site"] == "net.0", "grad_z_var"] = 0.0
    ax = ss.draw.gradient_boxes(snapshot)
    assert len(ax.patches) == 2
    assert ax.get_ylim()[0] > -10


def test_given_quantiles_are_drawn_as_they_are() -> None:
    table = np.arange(15.0).reshape(5, 3)
    ax = ss.draw.boxes_by_layer(["a", "b", "c"], table, "backward")
    np.testing.assert_allclose(drawn_boxes(ax), table)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]


def test_a_mixture_of_equal_neurons_is_the_neuron() -> None:
    one = 3 + 2 * NORMAL
    np.testing.assert_allclose(mixture(np.tile(one[:, None], 7)), one, atol=0.04)


def test_a_mixture_of_different_normals() -> None:
    """Against the exact mixture distribution, inverted by bisection on its CDF."""
    rng = np.random.default_rng(0)
    mean, std = rng.normal(0, 2, 60), rng.uniform(0.2, 1.5, 60)
    pooled = mixture(mean + std * NORMAL[:, None])
    grid = np.linspace(-12, 12, 40_001)
    cdf = norm.cdf(grid[:, None], mean, std).mean(axis=1)
    np.testing.assert_allclose(pooled, np.interp(QUANTILES, cdf, grid), atol=0.03)


def test_a_mixture_of_many_is_that_of_evenly_chosen_ranks() -> None:
    mean = np.random.default_rng(0).normal(0, 1, 5000)
    pooled = mixture(mean + 0.3 * NORMAL[:, None])
    np.testing.assert_allclose(pooled, np.hypot(1, 0.3) * NORMAL, atol=0.08)


def test_a_mixture_of_nothing_is_unknown() -> None:
    assert np.isnan(mixture(np.full((5, 4), np.nan))).all()


def test_a_few_neurons_do_not_stand_for_their_layer() -> None:
    table = np.tile(NORMAL[:, None], 32)
    table[:, 2:] = np.nan
    assert np.isnan(mixture(table)).all()
    table[:, :16] = NORMAL[:, None]
    assert np.isfinite(mixture(table)).all()


def test_layers_of_which_most_is_not_finite_are_left_open() -> None:
    snapshot = make(3, width=8)
    rows = snapshot.neurons.index[snapshot.neurons["site"] == "net.2"][:6]
    snapshot.neurons.loc[rows, ["grad_z_var", *quantile_names("z")]] = np.nan
    for ax in ss.draw.layer_boxes(snapshot).axes:
        assert len(ax.patches) == 2


def test_a_layer_of_nan_is_not_called_one_without_loss() -> None:
    model = network(0.4)
    model[0].weight.data[:] = float("nan")
    words = [ax.texts[0].get_text() for ax in ss.draw.layer_boxes(measure(model, *batch())).axes]
    assert all("NaN or infinite" in " ".join(text.split()) for text in words)
    assert "layers" not in [item.name for item in ss.draw.figures(measure(model, *batch()))]
