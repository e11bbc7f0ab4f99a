"""Axes in decades for data that are kept as log10.

Variances of gradients reach 1e-90 and below. They are drawn on a linear axis of their log10, whose
ticks say what the value is: nothing underflows, and zero is never drawn as if it were small.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator

from shiftscope.columns import decades

__all__ = ["decade_axis", "decade_text", "decades", "value_axis", "value_text"]

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PLAIN = 4
_DECADES = 4.0
_ENOUGH = 3
_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 1.8, 2, 2.5, 3, 4, 5, 6, 8))
"""Round values within a decade, from few to many: the first that gives enough ticks is taken."""


class DecadeLocator(Locator):
    """Ticks at whole decades, or at round values where the axis spans few decades."""

    def __init__(self, ticks: int = 6) -> None:
        self.ticks = ticks

    def __call__(self) -> Any:
        """Ticks for the present limits of the axis."""
        low, high = map(float, self.axis.get_view_interval())  # type: ignore[union-attr]
        return self.tick_values(min(low, high), max(low, high))

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Ticks between two limits given as log10."""
        if vmax - vmin >= _DECADES:
            whole = MaxNLocator(self.ticks, integer=True, steps=[1, 2, 5, 10])
            return whole.tick_values(vmin, vmax)
        for steps in _STEPS:
            powers = np.arange(math.floor(vmin), math.ceil(vmax) + 1)
            ticks = np.sort(np.add.outer(powers, np.log10(steps)).ravel())
            ticks = ticks[(ticks >= vmin) & (ticks <= vmax)]
            if len(ticks) >= _ENOUGH:
                break
        return ticks


def decade_text(log10: float, _position: object = None) -> str:
    """The value behind a log10 in as few characters as it takes: ``0.01``, ``10⁻⁹``, ``2·10⁻⁹``."""
    power = math.floor(log10 + 1e-9)
    if -_PLAIN <= power <= _PLAIN:
        return f"{10.0**log10:.3g}" if power < 3 else f"{round(10.0**log10):d}"
    mantissa = 10.0 ** (log10 - power)
    raised = f"10{str(power).translate(_SUPERSCRIPT)}"
    return raised if abs(mantissa - 1) < 1e-6 else f"{mantissa:.3g}·{raised}"


def value_text(value: float, _position: object = None) -> str:
    """A number as one would write it, without a factor kept elsewhere: ``-0.25``, ``2·10⁻⁹``."""
    sign = "−" if value < 0 else ""
    size = abs(value)
    if size and not 10.0**-_PLAIN <= size < 10.0 ** (_PLAIN + 1):
        return sign + decade_text(math.log10(size))
    return f"{sign}{size:.6g}"


def value_axis(axis: Axis) -> None:
    """Label a linear axis by whole numbers; matplotlib's common factor would cover the title."""
    axis.set_major_formatter(FuncFormatter(value_text))


def decade_axis(axis: Axis, ticks: int = 6) -> None:
    """Label an axis whose data are log10 values by the values themselves.

    Args:
        axis: ``ax.xaxis`` or ``ax.yaxis``.
        ticks: About how many ticks there may be.
    """
    axis.set_major_locator(DecadeLocator(ticks))
    axis.set_major_formatter(FuncFormatter(decade_text))
