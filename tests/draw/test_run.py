"""Figures of runs: the numbers drawn are those of the windows, nothing is drawn as zero."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from draw_cases import mesh
from matplotlib.colors import to_rgba
from run_cases import run

from shiftscope import draw
from shiftscope.draw.course import Course
from shiftscope.draw.heatmaps import MISSING
from shiftscope.draw.output import to_png_bytes
from shiftscope.draw.pooling import mixture
from shiftscope.errors import UsageError
from shiftscope.snapshot import Snapshot
from shiftscope.trace import Trace, Window


@pytest.fixture(scope="module")
def trace() -> Trace:
    return run([0.0, 0.4, 1.0], [2.3, 2.2, 2.4])


def column(snapshot: Snapshot, name: str, kind: str) -> np.ndarray[Any, Any]:
    sites = snapshot.sites
    return sites[sites["kind"] == kind][name].to_numpy(dtype=float)


def forward_only(window: Window) -> Window:
    records = {
        name: replace(record, streams={k: v for k, v in record.streams.items() if k in "az"})
        for name, record in window.snapshot.records.items()
    }
    return replace(window, snapshot=replace(window.snapshot, records=records))


@pytest.mark.parametrize(
    ("quantity", "kind", "log"),
    [
        ("shift_share", "activation", False),
        ("grad_z_var", "linear", True),
        ("xi_measured", "linear", True),
        ("phi_fw", "activation", True),
    ],
)
def test_a_map_holds_the_columns_of_the_windows(
    trace: Trace, quantity: str, kind: str, log: bool
) -> None:
    ax = draw.evolution_map(trace, quantity)
    drawn = np.ma.filled(mesh(ax).get_array(), np.nan)
    expected = np.stack([column(w.snapshot, quantity, kind) for w in trace.windows], axis=1)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(drawn, np.log10(expected) if log else expected, rtol=1e-12)


def test_sites_are_named(trace: Trace) -> None:
    ax = draw.evolution_map(trace)
    names = trace.windows[0].snapshot.sites.query("kind == 'activation'")["site"]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(names)[::2]


def test_shares_have_one_scale_and_gains_are_white_at_one(trace: Trace) -> None:
    assert mesh(draw.evolution_map(trace)).get_clim() == (0.0, 1.0)
    low, high = mesh(draw.evolution_map(trace, "eta_measured")).get_clim()
    assert low == -high


def test_what_was_not_measured_is_grey(trace: Trace) -> None:
    mixed = Trace((forward_only(trace.windows[0]), *trace.windows[1:]))
    image = mesh(draw.evolution_map(mixed, "grad_z_var"))
    lost = ~np.isfinite(np.ma.filled(image.get_array(), np.nan))
    assert lost[:, 0].all()
    assert not lost[:, 1:].any()
    assert image.get_cmap()(np.ma.masked_all(1))[0] == pytest.approx(to_rgba(MISSING))


def test_maps_leave_out_what_no_window_has(trace: Trace) -> None:
    told = [ax.get_title(loc="left") for ax in draw.evolution(trace).axes]
    bare = Trace(map(forward_only, trace))
    left = [ax.get_title(loc="left") for ax in draw.evolution(bare).axes]
    assert {"Gradient variance V(∇z)", "Backward gain ξ of linear maps"} <= set(told) - set(left)
    assert "Shift share of z" in left


def test_curves_are_the_columns_of_the_windows(trace: Trace) -> None:
    figure = draw.run_curves(trace)
    loss, share, gradient = figure.axes
    assert list(loss.lines[0].get_ydata()) == [2.3, 2.2, 2.4]
    expected = np.stack([column(w.snapshot, "shift_share", "activation") for w in trace.windows])
    np.testing.assert_allclose([line.get_ydata() for line in share.lines], expected.T)
    logs = np.stack([column(w.snapshot, "log10_grad_z_var", "linear") for w in trace.windows])
    np.testing.assert_allclose([line.get_ydata() for line in gradient.lines], logs.T, rtol=1e-9)
    assert all(list(line.get_xdata()) == [0, 5, 10] for line in share.lines)


def test_bands_are_the_pooled_quantiles(trace: Trace) -> None:
    ax = draw.quantile_course(trace, ["1"]).axes[0]
    tables = [mixture(w.snapshot.quantiles["1"]["z"]) for w in trace.windows]
    for patch, (low, high) in zip(ax.patches, ((0, 4), (1, 3), (None, 2)), strict=True):
        values, edges, baseline = patch.get_data()
        np.testing.assert_allclose(values, [table[high] for table in tables])
        np.testing.assert_allclose(edges, [-0.5, 4.5, 9.5, 14.5])
        if low is not None:
            np.testing.assert_allclose(baseline, [table[low] for table in tables])


def test_very_many_windows_are_thinned_and_keep_their_ends(trace: Trace) -> None:
    many = Trace((replace(trace[0], first=k, last=k) for k in range(900)), limit=1000)
    course = Course.of(many)
    assert len(course.steps) <= 360
    assert (course.steps[0], course.steps[-1]) == (0, 899)


def test_a_run_has_its_figures(trace: Trace) -> None:
    figures = draw.run_figures(trace)
    assert [item.name for item in figures] == ["evolution", "curves", "quantile-course"]
    assert all("steps 0 to 10" in item.alt and item.caption for item in figures)
    assert all(to_png_bytes(item.figure, 40)[1:4] == b"PNG" for item in figures)


def test_mistakes_are_refused(trace: Trace) -> None:
    with pytest.raises(UsageError, match="no finished window"):
        draw.evolution(Trace())
    with pytest.raises(UsageError, match="of phase 'test'"):
        Course.of(trace, "test")
    with pytest.raises(UsageError, match="no quantity 'loss'"):
        draw.evolution_map(trace, "loss")
    with pytest.raises(UsageError, match="no curves"):
        draw.site_curves(trace, "phi_fw")
    with pytest.raises(UsageError, match="no site 'nowhere'"):
        draw.quantile_course(trace, ["nowhere"])
    with pytest.raises(UsageError, match="no stream"):
        draw.quantile_course(trace, stream="weights")
