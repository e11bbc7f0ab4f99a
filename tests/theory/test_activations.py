"""Gains of activation functions against 30-digit values, identities and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support import golden

import shiftscope as ss
from shiftscope.errors import UsageError
from shiftscope.theory.activations import gains, known, poincare_bounds, stein_gap

SPELLINGS = {
    "leaky_relu_0.01": ("leaky_relu", {}),
    "leaky_relu_0.2": ("leaky_relu", {"negative_slope": 0.2}),
    "prelu_0.25": ("prelu", {}),
    "rrelu_eval": ("rrelu", {}),
    "elu_1": ("elu", {}),
    "elu_0.5": ("elu", {"alpha": 0.5}),
    "celu_2": ("celu", {"alpha": 2.0}),
    "softshrink_0.5": ("softshrink", {}),
    "hardshrink_0.5": ("hardshrink", {}),
}
FIELDS = {
    "mean": "mean",
    "var": "variance",
    "second_moment": "second_moment",
    "mean_grad": "mean_grad",
    "phi_fw": "phi_fw",
    "phi_bw": "phi_bw",
}
SMOOTH = ["sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "mish", "softplus", "logsigmoid", "erf"]


def test_every_golden_activation_at_every_point() -> None:
    cases = golden("activations")["activations"]
    assert len(cases) == 30
    for label, case in cases.items():
        name, parameters = SPELLINGS.get(label, (label, {}))
        grid = case["grid"]
        result = gains(name, [g["mu"] for g in grid], [g["sigma"] for g in grid], **parameters)
        for stored, field in FIELDS.items():
            expected = np.array([g[stored] for g in grid])
            np.testing.assert_allclose(
                getattr(result, field), expected, rtol=1e-10, atol=1e-10, err_msg=f"{label} {field}"
            )


def test_the_sigmoid_table_of_section_4_2_is_one_of_standard_deviations() -> None:
    for row in golden("activations")["paper_sigmoid_erratum"]:
        value = gains("sigmoid", 0.0, row["sigma"])
        assert value.phi_fw == pytest.approx(row["phi_fw"], abs=1e-10)
        assert value.phi_bw == pytest.approx(row["phi_bw"], abs=1e-10)
        assert math.sqrt(value.phi_fw) == pytest.approx(row["printed_fw"], abs=1e-3)
        assert math.sqrt(value.phi_bw) == pytest.approx(row["printed_bw"], abs=1e-3)


def test_relu_gains_of_proposition_6() -> None:
    paper = golden("activations")["paper_relu"]
    value = ss.theory.gains("relu")
    assert value.phi_fw == pytest.approx(paper["phi_fw"], abs=1e-14)
    assert value.phi_bw == pytest.approx(paper["phi_bw"], abs=1e-14)
    assert value.degree == pytest.approx(paper["ratio_bw_over_fw"], abs=1e-13)


@pytest.mark.parametrize("name", [n for n in known() if n not in ("hardshrink", "threshold")])
def test_stein_and_poincare_hold_for_every_continuous_activation(name: str) -> None:
    mean, std = np.meshgrid([-3.0, -0.7, 0.0, 1.3, 6.0], [0.1, 0.9, 3.0])
    # Scaled by the slope's own size: |z|² grows with the mean.
    value = gains(name, mean, std)
    scale = 1.0 + np.sqrt(value.phi_bw)
    assert np.all(np.abs(stein_gap(name, mean, std)) < 1e-12 * scale)
    for slack in poincare_bounds(value):
        assert np.all(slack > -1e-13 * scale**2)


def test_a_jump_breaks_stein_and_says_so() -> None:
    assert abs(stein_gap("hardshrink")) > 0.1
    assert poincare_bounds(gains("hardshrink"))[1] < -0.1


def test_scalars_give_floats_and_arrays_broadcast() -> None:
    assert isinstance(gains("gelu").phi_fw, float)
    table = gains("tanh", np.zeros((4, 1)), np.ones(3))
    assert table.phi_bw.shape == (4, 3)
    assert table.phi_bw[2, 1] == pytest.approx(gains("tanh").phi_bw, abs=1e-15)


def test_array_parameters_broadcast_like_means() -> None:
    slopes = np.array([0.0, 0.25, 0.25, 1.0])
    table = gains("prelu", 0.3, 1.2, weight=slopes)
    each = [gains("leaky_relu", 0.3, 1.2, negative_slope=float(s)).phi_fw for s in slopes]
    np.testing.assert_allclose(table.phi_fw, each, rtol=1e-15)


def test_bad_arguments_say_what_to_do() -> None:
    with pytest.raises(UsageError, match="no activation is called 'rellu'"):
        gains("rellu")
    with pytest.raises(UsageError, match="must not be negative"):
        gains("relu", 0.0, -1.0)
    with pytest.raises(UsageError, match="do not broadcast"):
        gains("relu", np.zeros(3), np.ones(4))
    with pytest.raises(UsageError, match="has no parameter 'slope'"):
        gains("leaky_relu", slope=0.1)
