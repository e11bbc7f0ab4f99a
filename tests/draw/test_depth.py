"""Predicted over measured profiles: the artists hold the data, levels meet, gaps are told."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import shiftscope as ss
from shiftscope.theory import predict_profile, profile_for_sites

STANDARD = predict_profile(6, "sigmoid")
ZERO_SUM = predict_profile(6, "sigmoid", constrained=True)


def test_both_panels_hold_measured_and_predicted_values() -> None:
    share, logs = STANDARD.shift_share + 0.01, STANDARD.log10_grad_var - 3
    figure = ss.draw.profile_over_depth(share, logs, {"a": STANDARD, "b": ZERO_SUM})
    top, bottom = figure.axes
    lines = {line.get_label(): line for line in top.lines}
    np.testing.assert_array_equal(lines["measured"].get_ydata(), share)
    np.testing.assert_array_equal(lines["a"].get_ydata(), STANDARD.shift_share)
    assert lines["a"].get_linestyle() != lines["b"].get_linestyle()
    lines = {line.get_label(): line for line in bottom.lines}
    np.testing.assert_array_equal(lines["measured"].get_ydata(), logs)
    np.testing.assert_allclose(lines["a"].get_ydata(), logs)
    # a prediction has no level of its own: it meets the last measured layer
    assert lines["b"].get_ydata()[-1] == logs[-1]
    figure.canvas.draw()
    assert not plt.get_fignums()


def test_the_anchor_is_the_last_layer_known_to_both() -> None:
    logs = np.array([1.0, 2.0, np.nan])
    predicted = profile_for_sites(["tanh"] * 3, [2.0] * 3, [2.0] * 3)
    ax = ss.draw.gradients_over_depth(logs, {"t": predicted})
    line = next(line for line in ax.lines if line.get_label() == "t")
    assert line.get_ydata()[1] == pytest.approx(2.0)


def test_names_stand_along_the_axis() -> None:
    names = [f"net.{k}" for k in range(6)]
    ax = ss.draw.shares_over_depth(STANDARD.shift_share, {}, names)
    assert [text.get_text() for text in ax.get_xticklabels()] == names
    assert ax.get_xlabel() == ""


def test_nothing_known_is_said_in_words() -> None:
    ax = ss.draw.shares_over_depth([np.nan, np.nan], {})
    assert "Not measured" in ax.texts[0].get_text()


def test_another_number_of_layers_is_refused() -> None:
    with pytest.raises(ss.UsageError, match="'a' predicts 6 layers, measured were 2"):
        ss.draw.shares_over_depth([0.0, 0.1], {"a": STANDARD})


def test_lines_end_with_their_chain() -> None:
    share = STANDARD.shift_share
    ax = ss.draw.shares_over_depth(share, {"a": STANDARD}, chain=[0, 0, 1, 1, 1, 2])
    line = next(line for line in ax.lines if line.get_label() == "a")
    values = np.asarray(line.get_ydata())
    assert np.flatnonzero(np.isnan(values)).tolist() == [2, 6]
    np.testing.assert_array_equal(values[~np.isnan(values)], share)
