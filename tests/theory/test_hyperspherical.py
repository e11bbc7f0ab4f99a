"""Directions and angles: golden conversions, poles, scales, gradients, the stability chain."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import golden
from torch import Tensor

from shiftscope.errors import UsageError
from shiftscope.theory.hyperspherical import (
    direction,
    metric,
    perturbation,
    to_angles,
)


def _tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _naive_direction(angles: list[float]) -> list[float]:
    """The definition, product by product."""
    entries = [
        math.prod(math.sin(a) for a in angles[:k]) * math.cos(angles[k]) for k in range(len(angles))
    ]
    return [*entries, math.prod(math.sin(a) for a in angles)]


@pytest.mark.parametrize("case", range(8))
def test_conversion_meets_golden(case: int) -> None:
    row = golden("gmp")["conversion"][case]
    radius, angles = to_angles(_tensor(row["w"]))
    assert float(radius) == pytest.approx(row["r"], abs=1e-12)
    torch.testing.assert_close(angles, _tensor(row["theta"]), atol=1e-12, rtol=0)
    torch.testing.assert_close(direction(angles), _tensor(row["u"]), atol=1e-12, rtol=0)
    torch.testing.assert_close(metric(angles), _tensor(row["metric_diag"]), atol=1e-12, rtol=0)


def test_released_converter_loses_the_sign_and_ours_does_not() -> None:
    rows = golden("gmp")["conversion"]
    flipped = [row for row in rows if row["w"][-1] < 0]
    assert flipped
    for row in flipped:
        released = _tensor(row["r"] * direction(_tensor(row["released_converter_theta"])).numpy())
        torch.testing.assert_close(
            released, _tensor(row["released_converter_roundtrip_w"]), atol=1e-12, rtol=0
        )
        radius, angles = to_angles(_tensor(row["w"]))
        torch.testing.assert_close(radius * direction(angles), _tensor(row["w"]))


@pytest.mark.parametrize("case", range(4))
def test_perturbation_meets_golden(case: int) -> None:
    row = golden("gmp")["perturbation_bound"][case]
    got = perturbation(_tensor(row["theta"]), _tensor(row["eps"]))
    for mine, theirs in [
        (got.angular_change, "angular_change"),
        (got.first_order, "first_order_metric"),
        (got.path_length, "path_length"),
        (got.bound_l2, "bound_l2"),
        (got.bound_l1, "bound_l1"),
    ]:
        assert float(mine) == pytest.approx(row[theirs], abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-4, 4), min_size=1, max_size=6),
    st.lists(st.floats(-2, 2), min_size=6, max_size=6),
)
def test_stability_chain_holds_for_any_change(angles: list[float], change: list[float]) -> None:
    got = perturbation(_tensor(angles), _tensor(change[: len(angles)]), panels=64)
    # kinks of the path's speed at a pole limit the quadrature, not the theorem
    assert got.angular_change <= got.path_length + 1e-3 * got.bound_l2
    assert got.path_length <= got.bound_l2 * (1 + 1e-12) <= got.bound_l1 * (1 + 1e-9)
    assert got.angular_change <= got.bound_l2 + 1e-12


@pytest.mark.parametrize("inputs", [2, 3, 5, 64, 4608])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 0.2)]
)
def test_round_trip_in_any_dimension(inputs: int, dtype: torch.dtype, tolerance: float) -> None:
    weight = torch.randn(7, inputs, generator=torch.Generator().manual_seed(inputs)).to(dtype)
    radius, angles = to_angles(weight)
    assert radius.dtype == angles.dtype == dtype
    back = radius[:, None] * direction(angles)
    assert (back - weight).abs().max() <= tolerance * weight.abs().max()


def test_direction_is_the_definition() -> None:
    angles = [0.3, 2.9, 1.1, -2.0]
    torch.testing.assert_close(direction(_tensor(angles)), _tensor(_naive_direction(angles)))


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_scale_does_not_matter(scale: float) -> None:
    weight = _tensor([[0.5, -0.25, 0.75], [-1.0, 2.0, -0.5]])
    radius, angles = to_angles(weight * scale)
    torch.testing.assert_close(angles, to_angles(weight)[1], atol=1e-15, rtol=0)
    torch.testing.assert_close(radius / scale, torch.linalg.vector_norm(weight, dim=-1))


def test_float32_keeps_scales_whose_squares_underflow() -> None:
    _, angles = to_angles(torch.tensor([1e-30, 3e-30, -2e-30]))
    torch.testing.assert_close(angles, to_angles(torch.tensor([1.0, 3.0, -2.0]))[1])


def test_near_a_pole_small_angles_keep_their_digits() -> None:
    _, angles = to_angles(_tensor([1.0, 3e-9, -4e-9]))
    assert float(angles[0]) == pytest.approx(5e-9, rel=1e-12)
    assert float(angles[1]) == pytest.approx(math.atan2(-4.0, 3.0), rel=1e-12)


def test_poles_and_zero_vectors_give_finite_gradients() -> None:
    weight = _tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [-2, 0, 0]]).requires_grad_()
    radius, angles = to_angles(weight)
    torch.testing.assert_close(angles[0], torch.zeros(2, dtype=torch.float64))
    (radius.sum() + angles.sum()).backward()
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


def test_gradients_of_both_orders() -> None:
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(2, 4, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(2, 4, dtype=torch.float64, generator=generator).requires_grad_()
    pole = _tensor([[0.0, 0.3, 0.2]]).requires_grad_()
    for function, argument in [(direction, angles), (to_angles, weight), (direction, pole)]:
        assert torch.autograd.gradcheck(function, (argument,))
        assert torch.autograd.gradgradcheck(function, (argument,))


def test_metric_is_the_jacobian_gram_matrix() -> None:
    angles = _tensor([0.9, 2.1, -0.7, 1.3])
    jacobian = torch.autograd.functional.jacobian(direction, angles)
    torch.testing.assert_close(jacobian.T @ jacobian, torch.diag(metric(angles)))


def test_mean_metric_of_uniform_directions() -> None:
    draws = torch.randn(40_000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = (5 - np.arange(4)) / 5
    np.testing.assert_allclose(metric(to_angles(draws)[1]).mean(0).numpy(), expected, atol=0.01)


def test_one_input_has_no_angle() -> None:
    radius, angles = to_angles(_tensor([[-3.0], [2.0]]))
    assert angles.shape == (2, 0)
    torch.testing.assert_close(radius, _tensor([3.0, 2.0]))
    torch.testing.assert_close(direction(angles), _tensor([[1.0], [1.0]]))


def test_no_entries_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one entry"):
        to_angles(torch.empty(3, 0))
