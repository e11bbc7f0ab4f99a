"""Profiles along the depth: what is plotted is the table, thresholds and findings are marked."""

from __future__ import annotations

import numpy as np
import pytest
from draw_cases import Blame, blames, make, with_frames
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text
from run_cases import batch, network
from standin import measure

import shiftscope as ss


def line(ax: Axes, label: str) -> Line2D:
    (found,) = [item for item in ax.lines if item.get_label() == label]
    return found


def test_the_shift_share_is_plotted_at_the_place_of_its_site() -> None:
    snapshot = make(4)
    ax = ss.draw.shift_profile(snapshot)
    drawn = line(ax, "entering activations")
    np.testing.assert_array_equal(drawn.get_xdata(), [1, 3, 5, 7])
    np.testing.assert_array_equal(drawn.get_ydata(), snapshot.sites["shift_share"][1::2])


def test_gradients_are_in_decades() -> None:
    snapshot = make(30)
    ax = ss.draw.gradient_profile(snapshot)
    expected = snapshot.sites["log10_grad_z_var"][0::2]
    np.testing.assert_array_equal(line(ax, "mean over neurons").get_ydata(), expected)
    assert "10⁻²⁰" in [label.get_text() for label in ax.get_yticklabels()]


def test_variances_beyond_float_range_are_drawn() -> None:
    snapshot = make(3)
    snapshot.sites["log10_grad_z_var"] = -5000.0 - np.arange(6)
    ax = ss.draw.gradient_profile(snapshot)
    ax.figure.canvas.draw()
    assert np.isfinite(ax.get_ylim()).all()


@pytest.mark.parametrize("kind", ["activation", "linear"])
def test_gains_measured_and_predicted(kind: str) -> None:
    snapshot = make(3)
    ax = ss.draw.gain_profile(snapshot, kind)
    colors = [item.get_color() for item in ax.lines]
    names = ("forward", "theory", "backward", "theory")
    assert colors == [ss.draw.COLORS[name] for name in names]
    name = "phi_fw" if kind == "activation" else "eta_measured"
    known = snapshot.sites[name].dropna()
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.log10(known))


def test_a_gap_in_the_table_is_a_gap_in_the_line() -> None:
    snapshot = make(6)
    snapshot.sites.loc[4, "log10_grad_z_var"] = np.nan
    drawn = line(ss.draw.gradient_profile(snapshot), "mean over neurons")
    assert np.isnan(drawn.get_ydata()).tolist() == [False, False, True, False, False, False]


def test_thresholds_are_dashed_lines_at_their_value() -> None:
    snapshot = make(8)
    drawn = line(ss.draw.shift_profile(snapshot, blames(snapshot)), "threshold 0.5")
    assert set(drawn.get_ydata()) == {0.5}
    assert drawn.get_color() == ss.draw.COLORS["threshold"]
    assert drawn.get_linestyle() == "--"


def test_a_relative_threshold_stands_below_the_last_hidden_layer() -> None:
    snapshot = make(8)
    ax = ss.draw.gradient_profile(snapshot, blames(snapshot))
    drawn = line(ax, "3.3 decades below the last hidden layer")
    assert drawn.get_ydata()[0] == pytest.approx(-0.8 - 3.3)
    assert ax.get_ylim()[0] < -0.8 - 3.3


def test_a_threshold_of_collapse_stands_below_the_first_activation() -> None:
    snapshot = make(4)
    snapshot.sites["within_var"] = 10.0 ** -np.arange(8)
    found = Blame("variance_collapse", "serious", ("net.7:sigmoid",), ("collapse", 3.3))
    ax = ss.draw.variance_profile(snapshot, [found])
    np.testing.assert_allclose(line(ax, "within a neuron (mean)").get_ydata(), [-1, -3, -5, -7])
    drawn = line(ax, "3.3 decades below the first site")
    assert drawn.get_ydata()[0] == pytest.approx(-1 - 3.3)
    assert "entering activations" in ax.get_title(loc="left")


def test_sites_of_findings_are_marked_by_color_and_shape() -> None:
    snapshot = make(8)
    mark = line(ss.draw.shift_profile(snapshot, blames(snapshot)), "serious: activation shift")
    assert list(mark.get_xdata()) == [12, 14]
    assert mark.get_color() == ss.draw.SEVERITY_COLORS["serious"]
    assert mark.get_marker() == "^"


def test_findings_about_sites_that_are_gone_are_left_out() -> None:
    snapshot, other = make(8), make(8, prefix="other.")
    ax = ss.draw.shift_profile(snapshot, blames(other))
    assert not [item for item in ax.lines if str(item.get_label()).startswith("serious")]


def test_a_legend_of_many_entries_leaves_the_title_free() -> None:
    shifted = make(layers=6)
    blamed = [
        Blame(cause, "serious", tuple(shifted.sites["site"][2:6]), ("collapse", 3.3))
        for cause in ("variance_collapse", "weight_scale")
    ]
    figure = ss.draw.depth_profile(shifted, blamed)
    figure.draw_without_rendering()
    for ax in figure.axes:
        legend, title = ax.get_legend(), ax.get_title(loc="left")
        words = next(t for t in ax.findobj(Text) if t.get_text() == title)
        assert legend is None or not legend.get_window_extent().overlaps(words.get_window_extent())


def test_the_panels_share_the_sites() -> None:
    figure = ss.draw.depth_profile(make(5))
    assert len({ax.get_xlim() for ax in figure.axes}) == 1
    labelled = [ax.xaxis.get_tick_params()["labelbottom"] for ax in figure.axes]
    assert labelled == [False] * (len(figure.axes) - 1) + [True]


def test_dead_units_are_a_share_of_the_width() -> None:
    snapshot = make(3, 16)
    snapshot.sites["dead"] = 4.0
    drawn = line(ss.draw.unit_profile(snapshot), "units never active")
    np.testing.assert_allclose(drawn.get_ydata(), 0.25)


@pytest.mark.parametrize(
    "draw",
    ["shift_profile", "variance_profile", "gradient_profile", "gain_profile", "unit_profile"],
)
def test_what_was_not_measured_is_said_in_words(draw: str) -> None:
    for snapshot in (make(3, holes=1.0), make(0)):
        if draw == "unit_profile":
            snapshot.sites["dead"] = np.nan
        ax = getattr(ss.draw, draw)(snapshot)
        assert ax.texts[0].get_text()
        assert not ax.lines


def test_low_panels_keep_the_labels_of_the_measured_ones() -> None:
    figure = ss.draw.layer_boxes(make(4, loss=False))
    top, bottom = figure.axes
    assert top.xaxis.get_tick_params()["labelbottom"]
    assert [t.get_text() for t in top.get_xticklabels()] == ["net.0", "net.2", "net.4", "net.6"]
    assert "Not measured" in bottom.texts[0].get_text()


def test_a_frame_does_as_well_as_a_snapshot() -> None:
    snapshot = make(3)
    one, other = (ss.draw.shift_profile(s) for s in (snapshot, snapshot.sites))
    assert [list(item.get_ydata()) for item in one.lines] == [
        list(item.get_ydata()) for item in other.lines
    ]


def test_anything_else_is_refused() -> None:
    with pytest.raises(ss.UsageError, match="got list"):
        ss.draw.shift_profile([1, 2])  # type: ignore[arg-type]
    with pytest.raises(ss.UsageError, match="without a column site"):
        ss.draw.shift_profile(make().sites.drop(columns="site"))


def test_activations_alone_are_enough() -> None:
    snapshot = make(3)
    only = snapshot.sites[snapshot.sites["kind"] == "activation"].reset_index(drop=True)
    ax = ss.draw.gradient_profile(with_frames(only, snapshot.neurons))
    assert len(line(ax, "mean over neurons").get_ydata()) == 3


def words(ax: Axes) -> str:
    return " ".join(" ".join(text.get_text() for text in ax.texts).split())


def test_a_gradient_of_nan_is_not_called_one_without_loss() -> None:
    model = network(0.4)
    model[0].weight.data[:] = float("nan")
    panels = ss.draw.depth_profile(measure(model, *batch())).axes
    assert "values of ∇z were NaN or infinite" in words(panels[2])
    assert "values of z were NaN or infinite" in words(panels[0])
    assert "give a loss" in words(ss.draw.gradient_profile(make(3, loss=False)))


def test_a_gradient_that_underflows_is_told_from_none() -> None:
    sites = make(3).sites.assign(grad_z_var=0.0, log10_grad_z_var=np.nan)
    assert "zero or below the resolution" in words(ss.draw.gradient_profile(sites))


def test_sites_with_values_that_are_not_finite_are_hatched() -> None:
    snapshot = make(4)
    assert not any(
        patch.get_hatch() for ax in ss.draw.depth_profile(snapshot).axes for patch in ax.patches
    )
    snapshot.sites["nonfinite"] = [0, 0, 5, 1, 0, 0, 2, 0]
    panels = ss.draw.depth_profile(snapshot).axes
    spans = [(p.get_x(), p.get_width()) for p in panels[2].patches if p.get_hatch()]
    assert spans == [(1.5, 2), (5.5, 1)]
    assert "NaN or infinite values" in [t.get_text() for t in panels[0].get_legend().get_texts()]
