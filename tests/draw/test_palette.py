"""Colours: one for each quantity, told apart by everybody, legible on white."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from shiftscope.draw.palette import COLORS, SEVERITY_COLORS, SEVERITY_MARKERS

VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
"""Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB."""

PANELS = [
    ("forward", "backward", "shift", "within", "theory", "measured", "threshold"),
    ("saturated", "dead", "threshold"),
]


def linear(color: str) -> np.ndarray:
    value = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("color", [*COLORS.values(), *SEVERITY_COLORS.values()])
def test_contrast_on_white(color: str) -> None:
    luminance = float(linear(color) @ np.array([0.2126, 0.7152, 0.0722]))
    assert 1.05 / (luminance + 0.05) >= 3.0


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("names", PANELS)
def test_quantities_of_a_panel_are_told_apart(vision: str, names: tuple[str, ...]) -> None:
    for one, other in itertools.combinations(names, 2):
        pair = (lab(VISION[vision] @ linear(COLORS[name])) for name in (one, other))
        assert np.linalg.norm(np.subtract(*pair)) >= 20, (vision, one, other)


def test_every_quantity_is_tested() -> None:
    assert set(COLORS) == {name for panel in PANELS for name in panel}


def test_severities_differ_by_shape_as_well() -> None:
    assert (
        list(SEVERITY_COLORS) == list(SEVERITY_MARKERS) == ["info", "watch", "serious", "critical"]
    )
    assert len(set(SEVERITY_MARKERS.values())) == len(SEVERITY_MARKERS)
