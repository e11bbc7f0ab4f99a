"""Axes in decades: ticks at values one would write down, labels that say the value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from shiftscope.draw.decades import DecadeLocator, decade_axis, decade_text, value_text


@pytest.mark.parametrize(
    ("log10", "text"),
    [
        (0.0, "1"),
        (-2.0, "0.01"),
        (3.0, "1000"),
        (-62.0, "10⁻⁶²"),
        (-400.0, "10⁻⁴⁰⁰"),
        (math.log10(2e-9), "2·10⁻⁹"),
        (math.log10(0.05), "0.05"),
    ],
)
def test_labels(log10: float, text: str) -> None:
    assert decade_text(log10) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.25, "−0.25"), (12345.0, "12345"), (2e-9, "2·10⁻⁹"), (-1e30, "−10³⁰")],
)
def test_values(value: float, text: str) -> None:
    assert value_text(value) == text


@given(st.floats(-400, 300), st.floats(0.3, 500))
def test_there_are_some_ticks_and_not_too_many(low: float, span: float) -> None:
    ticks = np.asarray(DecadeLocator(6).tick_values(low, low + span))
    inside = ticks[(ticks >= low - 1e-9) & (ticks <= low + span + 1e-9)]
    assert 2 <= len(inside) <= 12
    labels = [decade_text(tick) for tick in inside]
    assert len(set(labels)) == len(labels)


def test_an_axis_follows_its_limits() -> None:
    ax = Figure().subplots()
    decade_axis(ax.yaxis)
    for low, high in ((-90.0, -2.0), (-1.0, 0.0)):
        ax.set_ylim(low, high)
        ax.figure.canvas.draw()
        ticks = ax.get_yticks()
        assert ((ticks >= low - 21) & (ticks <= high + 21)).all()
        assert any(label.get_text() for label in ax.get_yticklabels())
