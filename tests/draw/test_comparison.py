"""The before/after figure: three panels, what was predicted as crosses, and reasons for gaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fix_cases import batches, mlp
from matplotlib.axes import Axes
from torch import nn
from torch.nn import functional as F

import shiftscope as ss
from shiftscope.comparison import Comparison
from shiftscope.draw.comparison import comparison_profile
from shiftscope.draw.output import to_png_bytes


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    torch.manual_seed(0)
    model, data = mlp(nn.Sigmoid, 3), batches()[:1]
    before = ss.analyze(model, data, F.cross_entropy)
    ss.constrain(model, "lcw")
    ss.rescale_(model, data[0][0])
    ss.release(model)
    return ss.compare(before, ss.analyze(model, data, F.cross_entropy))


def drawn(ax: Axes, label: str) -> np.ndarray:
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return np.asarray(line.get_ydata(), dtype=np.float64)


def test_both_and_the_prediction_are_drawn_at_every_site(comparison: Comparison) -> None:
    frame = comparison.frame
    predicted = {"0": 0.25, "4": 0.5}
    shift, within, gradient = comparison_profile(comparison, predicted).axes
    for ax, name in ((shift, "shift_share"), (within, "log10_within_var")):
        for side in ("before", "after"):
            np.testing.assert_array_equal(drawn(ax, side), frame[f"{name}_{side}"])
    np.testing.assert_array_equal(drawn(gradient, "after"), frame["log10_grad_z_var_after"])
    crosses = drawn(shift, "predicted")
    assert crosses[0] == 0.25
    assert crosses[4] == 0.5
    assert np.isnan(crosses[1])
    assert [t.get_text() for t in gradient.get_xticklabels()] == list(frame["site"])
    assert shift.get_legend() is not None


def test_missing_gradients_are_explained_in_words() -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 4))
    snapshot = ss.analyze(model, [batches()[0][0]])
    figure = comparison_profile(ss.compare(snapshot, snapshot))
    assert any("Not measured" in text.get_text() for text in figure.axes[2].texts)
    assert len(to_png_bytes(figure)) > 5_000
