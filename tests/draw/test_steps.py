"""Windows along the steps: as wide as they are, seen when alone, marked when not finite."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from draw_cases import mesh
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from run_cases import batch, network, run
from standin import measure

from shiftscope import draw
from shiftscope.draw.course import Course
from shiftscope.draw.marks import BAD
from shiftscope.trace import Trace, Window


@pytest.fixture(scope="module")
def trace() -> Trace:
    return run([0.0, 0.4, 1.0], [2.3, 2.2, 2.4])


def at(trace: Trace, *spans: tuple[int, int], phase: str = "train") -> list[Window]:
    """The windows of a run at other steps."""
    return [
        replace(window, first=first, last=last, phase=phase)
        for window, (first, last) in zip(trace, spans, strict=True)
    ]


@pytest.fixture(scope="module")
def broken(trace: Trace) -> Trace:
    """A run whose middle window holds NaN in its last layers, forward and backward."""
    model = network(0.4)
    model[10].weight.data[3, 4] = float("nan")
    first, middle, last = trace
    return Trace([first, replace(middle, snapshot=measure(model, *batch())), last])


def ticks(ax: Axes) -> list[str]:
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    return [t.get_text() for t in ax.get_xticklabels() if low <= t.get_position()[0] <= high]


def test_columns_are_as_wide_as_their_steps(trace: Trace) -> None:
    ax = draw.evolution_map(Trace(at(trace, (0, 9), (10, 19), (1000, 1499))))
    edges = mesh(ax).get_coordinates()[0, :, 0]
    assert edges.tolist() == [-0.5, 9.5, 999.5, 1499.5]
    assert ax.get_xlim() == (-0.5, 1499.5)
    assert ax.get_xscale() == "linear"


def test_a_last_window_that_was_cut_short_is_drawn_short(trace: Trace) -> None:
    course = Course.of(Trace(at(trace, (0, 95), (100, 195), (200, 205))))  # each fifth step
    assert course.edges.tolist() == [-0.5, 99.5, 199.5, 209.5]


def test_the_last_of_single_steps_is_as_wide_as_the_others(trace: Trace) -> None:
    assert Course.of(trace).edges.tolist() == [-0.5, 4.5, 9.5, 14.5]
    far = Course.of(Trace(at(trace, (0, 0), (1, 1), (10_000, 10_000))))
    assert far.edges[-1] - far.edges[-2] == 100  # one step of ten thousand could not be seen


def test_windows_out_of_order_are_sorted(trace: Trace) -> None:
    course = Course.of(Trace(at(trace, (20, 20), (0, 0), (10, 10))))
    assert course.steps == (0, 10, 20)
    assert course.manifest("loss").tolist() == [2.2, 2.4, 2.3]


def test_curves_stand_at_the_middle_of_their_windows_and_show_their_steps(trace: Trace) -> None:
    spans = ((0, 9), (10, 19), (1000, 1499))
    ax = draw.site_curves(Trace(at(trace, *spans)))
    assert ax.lines[0].get_xdata().tolist() == [4.5, 14.5, 1249.5]
    bars = [item for item in ax.collections if isinstance(item, LineCollection)]
    assert [tuple(bar[:, 0]) for bar in bars[0].get_segments()] == list(spans)
    assert np.ptp(bars[0].get_segments()[0][:, 1]) == 0


@pytest.mark.parametrize(("step", "shown"), [(0, ["0"]), (7, ["7"])])
def test_one_window_of_one_step_is_seen(trace: Trace, step: int, shown: list[str]) -> None:
    alone = Trace([replace(trace[2], first=step, last=step)])
    for item in draw.run_figures(alone):
        panels = [ax for ax in item.figure.axes if ax.get_label() != "<colorbar>"]
        assert ticks(panels[-1]) == shown
        assert f"at step {step}" in item.alt
        assert "one window" in item.caption
    bands = draw.quantile_course(alone, ["1"]).axes[0].patches
    values, edges, baseline = bands[0].get_data()
    assert np.isfinite([*values, *baseline]).all()
    assert edges.tolist() == [step - 0.5, step + 0.5]
    curves = draw.site_curves(alone)
    assert all(line.get_markevery() == [0] for line in curves.lines)


def test_a_step_between_gaps_is_seen(trace: Trace) -> None:
    many = [replace(trace[0], first=k, last=k) for k in range(20)]
    for k in (3, 5, 19):
        lost = replace(trace[0].snapshot)
        vars(lost)["sites"] = trace[0].snapshot.sites.assign(shift_share=np.nan)
        many[k] = replace(many[k], snapshot=lost)
    whole = Trace()
    whole.windows = many
    line = draw.site_curves(whole).lines[0]
    assert line.get_markevery() == [4]
    assert line.get_marker() == "o"


def test_values_that_are_not_finite_are_hatched(broken: Trace) -> None:
    share, gradient = draw.run_curves(broken).axes[-2:]
    for ax in (share, gradient):
        (span,) = [patch for patch in ax.patches if patch.get_hatch()]
        assert (span.get_x(), span.get_width()) == (4.5, 5)
    legend = draw.site_curves(broken).get_legend()
    assert BAD in [text.get_text() for text in legend.get_texts()]
    assert all("Hatched" in item.caption for item in draw.run_figures(broken))


def test_cells_that_are_not_finite_are_hatched(broken: Trace) -> None:
    ax = draw.evolution_map(broken)
    (marks,) = (item for item in ax.collections if type(item) is PolyCollection)
    sites = broken[1].snapshot.sites.query("kind == 'activation'")
    bad = np.flatnonzero(sites["nonfinite"] > 0)
    assert len(bad) > 0
    corners = [path.vertices[:4] for path in marks.get_paths()]
    assert [(c[:, 0].min(), c[:, 0].max()) for c in corners] == [(4.5, 9.5)] * len(bad)
    assert [c[:, 1].min() for c in corners] == [row - 0.5 for row in bad]
    assert BAD in [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_run_without_them_is_not_hatched(trace: Trace) -> None:
    ax = draw.evolution_map(trace)
    assert not [item for item in ax.collections if type(item) is PolyCollection]
    assert ax.get_legend() is None
    assert not draw.site_curves(trace).patches


def test_what_is_never_finite_is_not_called_unmeasured_for_want_of_a_loss(broken: Trace) -> None:
    model = network(0.4)
    model[0].weight.data[:] = float("nan")
    lost = Trace([replace(broken[1], snapshot=measure(model, *batch()))])
    words = draw.site_curves(lost, "grad_z_var").texts[0].get_text()
    assert "NaN or infinite" in " ".join(words.split())


def test_the_loss_is_spoken_of_where_it_is_drawn(trace: Trace) -> None:
    def caption(run: Trace) -> str:
        return next(item.caption for item in draw.run_figures(run) if item.name == "curves")

    silent = Trace(replace(w, snapshot=replace(w.snapshot, manifest={})) for w in trace)
    assert "loss" in caption(trace)
    assert "loss" not in caption(silent).lower()


def test_evaluation_is_dashed_beside_training(trace: Trace) -> None:
    beside = at(trace, (2, 2), (8, 8), (16, 16), phase="eval")
    both = Trace(sorted([*trace, *beside], key=lambda window: window.first))
    ax = draw.site_curves(both)
    dashed = [line for line in ax.lines if line.is_dashed() and len(line.get_xdata())]
    solid = [line for line in ax.lines if not line.is_dashed()]
    assert [line.get_xdata().tolist() for line in dashed] == [[2, 8, 16]] * len(dashed)
    assert 0 < len(dashed) <= len(solid)
    np.testing.assert_allclose(dashed[0].get_ydata(), solid[0].get_ydata())
    assert dashed[0].get_color() == solid[0].get_color()
    assert ax.get_xlim() == (-0.5, 16.5)
    assert "evaluation" in [text.get_text() for text in ax.get_legend().get_texts()]
    curves = next(item for item in draw.run_figures(both) if item.name == "curves")
    assert "evaluation" in curves.caption
    assert "evaluation" not in draw.run_figures(trace)[1].caption


def test_evaluation_with_values_that_are_not_finite_is_hatched(trace: Trace, broken: Trace) -> None:
    beside = replace(broken[1], first=7, last=8, phase="eval")
    ax = draw.site_curves(Trace([trace[0], trace[1], beside, trace[2]]))
    (span,) = ax.patches
    assert (span.get_x(), span.get_width()) == (6.5, 2)
    assert BAD in [text.get_text() for text in ax.get_legend().get_texts()]
    figures = draw.run_figures(Trace([trace[0], trace[1], beside, trace[2]]))
    told = {item.name: "Hatched" in item.caption for item in figures}
    assert told == {"evolution": False, "curves": True, "quantile-course": False}


def test_evaluation_that_measured_nothing_here_is_not_spoken_of(trace: Trace) -> None:
    bare = replace(trace[1].snapshot, records={}, manifest={})
    run = Trace([*trace, Window(90, 90, "eval", bare)])
    assert draw.site_curves(run).get_xlim() == (-0.5, 14.5)
    assert "evaluation" not in draw.run_figures(run)[1].caption


def test_bands_are_hatched_where_their_own_site_is_not_finite(trace: Trace) -> None:
    tables = trace[1].snapshot.sites
    marked = replace(trace[1].snapshot)
    vars(marked)["sites"] = tables.assign(nonfinite=(tables["site"] == "3").astype(int))
    run = Trace()
    run.windows = [trace[0], replace(trace[1], snapshot=marked), trace[2]]
    one, three = draw.quantile_course(run, ["1", "3"]).axes
    assert not [patch for patch in one.patches if patch.get_hatch()]
    (span,) = [patch for patch in three.patches if patch.get_hatch()]
    assert (span.get_x(), span.get_width()) == (4.5, 5)
    assert three.get_legend().get_texts()[0].get_text() == BAD
    assert not draw.quantile_course(run, []).axes[0].patches
