"""Heat maps, angles, predictions: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pytest
from draw_cases import make
from matplotlib.figure import Figure

import shiftscope as ss


def test_stripes_show_the_three_matrices() -> None:
    snapshot = make()
    figure = ss.draw.stripes(snapshot, "net.2")
    images = [ax.images[0] for ax in figure.axes if ax.images]
    for image, key in zip(images, "WAZ", strict=True):
        np.testing.assert_array_equal(image.get_array(), snapshot.pictures["net.2"][key])


def test_signed_scales_are_symmetric_and_the_one_of_z_is_shared() -> None:
    snapshot = make()
    figure = ss.draw.stripes(snapshot, ["net.0", "net.2"])
    images = [ax.images[0] for ax in figure.axes if ax.images]
    assert len(images) == 6
    largest = max(np.abs(snapshot.pictures[name]["Z"]).max() for name in ("net.0", "net.2"))
    assert images[2].get_clim() == images[5].get_clim() == (-largest, largest)
    low, high = images[0].get_clim()
    assert low == -high
    assert images[1].get_clim()[0] == 0


def test_a_matrix_of_nan_is_no_picture() -> None:
    pictures = {"a": {"W": np.full((2, 2), np.nan), "A": np.ones((2, 3))}}
    figure = ss.draw.stripes(pictures)
    texts = [" ".join(text.get_text().split()) for ax in figure.axes for text in ax.texts]
    assert sum("no finite crop" in text for text in texts) == 2


def test_no_pictures_at_all() -> None:
    (ax,) = ss.draw.stripes({}).axes
    assert "Not measured" in ax.texts[0].get_text()


def test_a_site_without_picture_is_refused() -> None:
    with pytest.raises(ss.UsageError, match="no picture of site 'x'"):
        ss.draw.stripes(make(), "x")


def test_missing_entries_are_not_zero() -> None:
    ax = Figure().subplots()
    image = ss.draw.heat_map(ax, np.array([[np.nan, 0.0], [1.0, -2.0]]), None)
    grey, white = image.cmap(image.norm(image.get_array()))[0]
    assert grey[:3] == pytest.approx((0xC9 / 255, 0xCD / 255, 0xD1 / 255))
    assert white[:3].min() > 0.9


@pytest.mark.parametrize("layers", [3, 30])
def test_angles_are_histograms_about_ninety_degrees(layers: int) -> None:
    snapshot = make(layers, 64)
    ax = ss.draw.angle_histogram(snapshot, "mean")
    low, high = ax.get_xlim()
    degrees = np.degrees(snapshot.neurons["theta_mean"].dropna())
    assert low + high == pytest.approx(180)
    assert low <= degrees.min()
    assert degrees.max() <= high
    edges = np.linspace(low, high, 62)
    first = np.degrees(snapshot.neurons.query("site == 'net.0'")["theta_mean"])
    counts = np.histogram(first, edges)[0]
    if layers == 3:
        values, drawn_edges, _ = ax.patches[0].get_data()
        np.testing.assert_allclose(drawn_edges, edges)
        np.testing.assert_allclose(-values / 0.85, counts / counts.max())
    else:
        np.testing.assert_allclose(ax.images[0].get_array()[0], counts / counts.max())


def test_right_angles_fall_into_the_middle_bin() -> None:
    snapshot = make(2)
    snapshot.neurons["theta_ones"] = np.pi / 2
    values, edges, _ = ss.draw.angle_histogram(snapshot, "ones").patches[0].get_data()
    (full,) = np.flatnonzero(values)
    assert edges[full] < 90 < edges[full + 1]


def test_weights_alone_tell_one_of_the_two_angles() -> None:
    snapshot = make(3)
    snapshot.neurons["theta_mean"] = np.nan
    left, right = ss.draw.angle_histograms(snapshot).axes
    assert len(left.patches) > 0
    assert "Not measured" in right.texts[0].get_text()


def test_prediction_and_measurement_are_the_axes() -> None:
    snapshot = make(3)
    ax = ss.draw.predicted_shift(snapshot, "net.2")
    frame = snapshot.neurons.query("site == 'net.2'")
    points = ax.lines[0]
    np.testing.assert_allclose(points.get_xdata(), frame["shift_predicted"])
    np.testing.assert_allclose(points.get_ydata(), frame["z_mean"] - frame["bias"])
    assert ax.get_xlim() == ax.get_ylim()


def test_the_largest_difference_is_told_in_units_of_the_norms() -> None:
    snapshot = make(3)
    neurons = snapshot.neurons
    place = neurons.index[neurons["site"] == "net.2"][4]
    scale = neurons.loc[place, "shift_predicted"] / np.cos(neurons.loc[place, "theta_mean"])
    neurons.loc[place, "z_mean"] += 0.01 * scale
    told = ss.draw.predicted_shift(snapshot).get_xlabel()
    assert "0.01 ‖w‖‖E(a)‖" in told


def test_all_sites_are_drawn_as_cosines() -> None:
    snapshot = make(3)
    points = ss.draw.predicted_shift(snapshot).lines[0]
    cosine = np.cos(snapshot.neurons["theta_mean"].dropna())
    np.testing.assert_allclose(points.get_xdata(), cosine, atol=1e-12)


def test_all_neurons_at_right_angles_are_still_measured() -> None:
    snapshot = make(3)
    snapshot.neurons[["theta_mean", "shift_predicted"]] = [np.pi / 2, 0.0]
    snapshot.neurons["z_mean"] = 0.25
    one, every, _ = ss.draw.predicted_against_measured(snapshot, "net.2").axes
    assert len(one.lines[0].get_xdata()) == 16
    assert len(every.lines[0].get_xdata()) == 48
    alone = ss.draw.predicted_shift(snapshot.neurons, "net.2")
    assert "largest difference\n0" in alone.get_xlabel()
    assert "‖w‖" not in alone.get_xlabel()


def test_words_of_a_narrow_panel_stay_inside() -> None:
    snapshot = make(3)
    snapshot.sites["phi_fw"] = snapshot.sites["phi_bw"] = np.nan
    figure = ss.draw.predicted_against_measured(snapshot, "net.2")
    figure.canvas.draw()
    ax = figure.axes[2]
    words = ax.texts[0].get_window_extent()
    assert ax.bbox.x0 < words.x0 < words.x1 < ax.bbox.x1


def test_words_below_stay_inside_beside_an_empty_panel() -> None:
    snapshot = make(3)
    snapshot.sites["phi_fw"] = snapshot.sites["phi_bw"] = np.nan
    figure = ss.draw.predicted_against_measured(snapshot, "net.2")
    figure.canvas.draw()
    for ax in figure.axes[:2]:
        words = ax.xaxis.label.get_window_extent()
        assert words.y0 >= 0
        assert ax.title.get_window_extent().y1 <= figure.bbox.y1


def test_a_neuron_at_a_right_angle_uses_the_scale_of_its_site() -> None:
    snapshot = make(3)
    place = snapshot.neurons.index[0]
    snapshot.neurons.loc[place, ["theta_mean", "shift_predicted"]] = [np.pi / 2, 0.0]
    snapshot.neurons.loc[place, "z_mean"] = 0.25
    points = ss.draw.predicted_shift(snapshot).lines[0]
    assert (points.get_xdata()[0], points.get_ydata()[0]) == (0.0, 0.0)


def test_the_legend_names_what_is_there() -> None:
    legend = ss.draw.activation_gains(make(3, loss=False)).get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["forward φ"]


def test_gains_against_theory_name_the_farthest() -> None:
    snapshot = make(3)
    snapshot.sites.loc[3, "phi_bw"] = 2 * snapshot.sites.loc[3, "phi_bw_theory"]
    ax = ss.draw.activation_gains(snapshot)
    forward, backward = ax.lines[:2]
    assert forward.get_color() == ss.draw.COLORS["forward"]
    assert backward.get_color() == ss.draw.COLORS["backward"]
    np.testing.assert_allclose(forward.get_ydata(), np.log10([0.043] * 3))
    told = ax.get_xlabel()
    assert "backward" in told
    assert "net.3:sigmoid" in told
    assert "factor 2," in told


def test_layers_named_in_chinese_are_told_apart_in_a_figure() -> None:
    figure = ss.draw.depth_profile(make(3, prefix="编码器."))
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert r"\u7f16\u7801\u5668.0" in labels
    assert len(set(labels)) == len(labels)


def test_titles_tell_sites_of_long_names_apart() -> None:
    prefix, titles = "model.decoder." + "block." * 12, []
    snapshot = make(3, prefix=prefix)
    names = [f"{prefix}{k}{'.attention' * 9}" for k in (0, 2)]
    for k, name in zip((0, 2), names, strict=True):
        snapshot.sites.loc[snapshot.sites["site"] == f"{prefix}{k}", "site"] = name
        snapshot.neurons.loc[snapshot.neurons["site"] == f"{prefix}{k}", "site"] = name
    for name in names:
        titles.append(ss.draw.neuron_boxes(snapshot, name).get_title(loc="left"))
        titles.append(ss.draw.predicted_shift(snapshot, name).get_title(loc="left"))
    assert len(set(titles)) == 4
