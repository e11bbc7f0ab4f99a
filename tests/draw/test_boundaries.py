"""Pictures of boundaries: what is drawn is where the units switch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

import shiftscope as ss
from shiftscope.theory import Boundaries, locate, move


def _plane() -> tuple[torch.Tensor, torch.Tensor, Boundaries]:
    torch.manual_seed(0)
    weight, bias = torch.randn(7, 2, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    return weight, bias, locate(weight, bias)


def test_lines_are_where_the_preactivation_is_zero() -> None:
    weight, bias, found = _plane()
    ax = ss.draw.boundary_lines(found.directions, found.offsets, torch.randn(30, 2))
    lines, ticks = (c for c in ax.collections if isinstance(c, LineCollection))
    for row, shift, segment in zip(weight, bias, lines.get_segments(), strict=True):
        np.testing.assert_allclose(segment @ row.numpy() + shift.item(), 0.0, atol=1e-9)
    for row, shift, segment in zip(weight, bias, ticks.get_segments(), strict=True):
        assert segment[1] @ row.numpy() + shift.item() > 0
    assert ax.get_aspect() == 1.0
    ax.figure.canvas.draw()


def test_the_view_holds_the_data() -> None:
    _, _, found = _plane()
    data = np.array([[10.0, -3.0], [-2.0, 40.0]])
    ax = ss.draw.boundary_lines(found.directions, found.offsets, data)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert left < -2 < 10 < right
    assert bottom < -3 < 40 < top


def test_points_point_to_their_active_side() -> None:
    weight = torch.tensor([[2.0], [-1.0], [0.0]])
    found = locate(weight, torch.tensor([-4.0, 0.5, 1.0]))
    ax = ss.draw.boundary_points(found.directions, found.offsets, np.linspace(-1, 3, 5))
    drawn = {line.get_label(): line.get_xdata() for line in ax.lines}
    np.testing.assert_allclose(drawn["active right of it"], [2.0])
    np.testing.assert_allclose(drawn["active left of it"], [0.5])
    assert "zero weight): 1" in ax.get_xlabel()


def test_far_boundaries_do_not_squeeze_the_picture() -> None:
    offsets = np.array([0.1] * 19 + [1000.0])
    ax = ss.draw.boundary_points(np.ones((20, 1)), offsets, [-1.0, 1.0])
    assert ax.get_xlim()[0] > -2
    assert "outside the picture: 1" in ax.get_xlabel()


def test_moves_show_mean_and_largest() -> None:
    _, _, found = _plane()
    table = torch.stack(
        [
            move(found, locate(found.directions, found.offsets + 0.1 * k)).displacement
            for k in (1, 2)
        ]
    )
    ax = ss.draw.boundary_moves({"layer": table, "other": np.full((2, 3), 1e-90)})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.log10([0.1, 0.2]), rtol=1e-9)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [-90.0, -90.0])
    assert len(ax.collections) == 2
    ax.figure.canvas.draw()


def test_units_without_boundary_are_left_out_of_moves() -> None:
    ax = ss.draw.boundary_moves({"a": [[np.nan, 0.1], [np.nan, np.nan], [1.0, 3.0]]})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.log10([0.1, np.nan, 2.0]))


def test_nothing_to_draw_is_said_in_words() -> None:
    nothing = locate(torch.zeros(2, 2))
    ax = ss.draw.boundary_lines(nothing.directions, nothing.offsets)
    assert "Not measured" in ax.texts[0].get_text()
    ax = ss.draw.boundary_points(np.full((1, 1), np.nan), [0.0])
    assert "Not measured" in ax.texts[0].get_text()
    assert "Not measured" in ss.draw.boundary_moves({}).texts[0].get_text()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ss.UsageError, match=r"directions \[units, 2\]"):
        ss.draw.boundary_lines(np.ones((3, 4)), np.ones(3))
    with pytest.raises(ss.UsageError, match=r"directions \[units, 1\]"):
        ss.draw.boundary_points(np.ones((3, 1)), np.ones(2))
    with pytest.raises(ss.UsageError, match=r"not \[steps, units\]"):
        ss.draw.boundary_moves({"a": [1.0]})
