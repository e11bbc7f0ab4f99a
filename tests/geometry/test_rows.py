"""Facts of weight rows in one go equal those of the functions that read the weights one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftscope import geometry as geo
from shiftscope.geometry import rows as module

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_equal_to_the_functions_one_by_one(
    dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CPU_BLOCK", block)
    torch.manual_seed(0)
    w = torch.randn(12, 30).to(dtype)
    w[3], w[4], w[5], w[6, 2] = 0.0, 1.0, -2.0, torch.inf
    means, groups = torch.randn(3, 30).double(), torch.arange(12) // 4
    for mean, group in ((means, groups), (means[:1], None), (None, None)):
        got = geo.row_facts(w, mean, group)
        same(got.norm2, geo.eta(w))
        same(got.row_sum, geo.shift(w, torch.ones(30)))
        same(got.theta_ones, geo.angle_to_ones(w))
        same(got.columns, geo.xi(w))
        if mean is None:
            assert got.shift.isnan().all()
        else:
            same(got.shift, geo.shift(w, mean, group))
    power = means.square()
    squares = w.double().square()
    same(geo.power_of_terms(w, power, groups), (squares * power[groups]).sum(1))
    same(geo.power_of_terms(w, power[:1]), squares @ power[0])


@given(
    angle=st.floats(0.0, math.pi),
    size=st.floats(-120.0, 120.0),
    width=st.integers(2, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_any_angle_of_any_size(angle: float, size: float, width: int, seed: int) -> None:
    """Also next to 0 and π, where an arc cosine loses half the digits."""
    rng = np.random.default_rng(seed)
    across = rng.standard_normal(width)
    across -= across.mean()
    across /= np.linalg.norm(across)
    w = 2.0**size * (math.cos(angle) / math.sqrt(width) + math.sin(angle) * across)
    theta = float(geo.row_facts(torch.from_numpy(w)[None]).theta_ones)
    assert abs(theta - angle) < 1e-14
    single = torch.from_numpy(w).float()[None]
    assert abs(float(geo.row_facts(single).theta_ones - geo.angle_to_ones(single))) < 1e-14


def test_tiny_and_huge_weights() -> None:
    w = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
    for size in (1e-200, 1e200):
        got = geo.row_facts(w * size)
        torch.testing.assert_close(got.theta_ones, geo.angle_to_ones(w))
        torch.testing.assert_close(got.row_sum, w.sum(1) * size)
    single = (w * 1e-44).float()
    torch.testing.assert_close(geo.row_facts(single).theta_ones, geo.angle_to_ones(single))


def test_no_rows_and_no_columns() -> None:
    assert geo.row_facts(torch.zeros(0, 3)).norm2.shape == (0,)
    assert geo.power_of_terms(torch.zeros(0, 3), torch.ones(1, 3).double()).shape == (0,)
    got = geo.row_facts(torch.zeros(2, 0))
    assert got.row_sum.tolist() == [0.0, 0.0]
    assert got.theta_ones.isnan().all()


def test_nothing_waits_for_the_device() -> None:
    w = torch.empty(6, 5, device="meta")
    got = geo.row_facts(w, torch.empty(1, 5, dtype=torch.float64, device="meta"))
    assert got.theta_ones.is_meta
    assert got.shift.shape == (6,)
