"""Moments, extrema and counts against numpy: odd values, resolution, pooling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tally_support import FLOATS, LAYOUTS, naive, rows_of, same

from shiftscope.errors import UsageError
from shiftscope.tally import Counts, Extrema, Moments, RowSample


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_that_are_not_finite_are_left_out_one_by_one(dtype: torch.dtype) -> None:
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[:20, 0] = torch.nan
    x[3, 1], x[4, 1], x[0, 2] = torch.inf, -torch.inf, torch.nan
    x[:, 3] = torch.nan
    want = naive(x.double().numpy())
    moments, extrema, counts = Moments.of(x), Extrema.of(x), Counts.of(x)
    np.testing.assert_array_equal(moments.count, want["count"])
    np.testing.assert_allclose(moments.mean, want["mean"], rtol=1e-12)
    np.testing.assert_allclose(moments.variance, want["var"], rtol=1e-11)
    np.testing.assert_array_equal(extrema.low, want["low"])
    np.testing.assert_array_equal(extrema.high, want["high"])
    np.testing.assert_array_equal(counts.nonfinite, 50 - want["count"])
    bounded = Counts.of(x, saturated_outside=(-torch.inf, 1.0))
    np.testing.assert_array_equal(bounded.saturated, (x.isfinite() & (x >= 1)).sum(0))
    kept = torch.where(x.isfinite(), x, -1.0).double().numpy()
    np.testing.assert_array_equal(counts.active, (kept > 0).sum(0))
    assert torch.isnan(moments.mean[3])
    assert torch.isnan(counts.active_fraction[3])
    assert counts.nonfinite_fraction[3] == 1
    assert not moments.below_resolution[3]


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_numbers_do_not_overflow(dtype: torch.dtype) -> None:
    top = min(torch.finfo(dtype).max, 1e150)
    x = torch.tensor([[top], [-top], [top], [-top]], dtype=torch.float64).to(dtype)
    moments = Moments.of(x)
    assert moments.count.tolist() == [4]
    assert moments.mean.tolist() == [0.0]
    np.testing.assert_allclose(moments.std, [float(x[0])], rtol=1e-12)


@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e4, 1e5])
@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1.0, 1e30])
@pytest.mark.parametrize("outlier", [0.0, 50.0])
def test_small_spreads_and_small_numbers_keep_their_digits(
    ratio: float, scale: float, outlier: float
) -> None:
    noise = np.random.default_rng(0).standard_normal((4000, 3))
    noise[0] += outlier
    x = torch.from_numpy((noise / ratio + 1) * scale).float()
    want = x.double().numpy()
    moments = Moments.of(x).merge(Moments.of(x * 1.5))
    want = np.concatenate([want, (x * 1.5).double().numpy()])
    np.testing.assert_allclose(moments.mean, want.mean(0), rtol=1e-12)
    centred = (want - want.mean(0)) / scale
    np.testing.assert_allclose(moments.std / scale, np.sqrt((centred**2).mean(0)), rtol=1e-9)
    first = Moments.of(x)
    exact = (noise / ratio).std(0) * scale
    right = np.abs(first.std.numpy() / exact - 1) < 1e-4
    assert np.all(right | first.below_resolution.numpy())
    assert not first.below_resolution.any() or (scale == 1e-35 and ratio > 1e6)


def test_spread_below_resolution_is_flagged() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(500, 1, dtype=torch.float64, generator=generator)
    for dtype in FLOATS[:3]:
        eps = torch.finfo(dtype).eps
        flags = [
            bool(Moments.of((1 + exact * factor * eps).to(dtype)).below_resolution)
            for factor in (1e-3, 0.5, 2.0, 10.0, 100.0)
        ]
        assert flags == [True, True, True, False, False], dtype
        tiny = torch.finfo(dtype).tiny
        assert bool(Moments.of((exact * tiny / 8).to(dtype)).below_resolution), dtype
        assert not bool(Moments.of((exact * tiny * 8).to(dtype)).below_resolution), dtype


def test_rounding_never_changes_an_unflagged_variance_by_more_than_a_percent() -> None:
    exact = torch.randn(20_000, 40, dtype=torch.float64, generator=torch.manual_seed(3))
    x = 1 + exact * torch.logspace(-9, -2, 40, dtype=torch.float64)
    moments, truth = Moments.of(x.float()), Moments.of(x)
    error = (moments.variance / truth.variance - 1).abs()
    assert bool((error[~moments.below_resolution] < 0.01).all())
    assert bool((error[moments.below_resolution] > 0.01).any())


def test_constants() -> None:
    x = torch.tensor([[0.0, 3.0, 0.1]]).expand(8, 3)
    moments = Moments.of(x)
    assert moments.variance.tolist() == [0, 0, 0]
    assert moments.below_resolution.tolist() == [False, True, True]
    assert not Moments.of(torch.full((4, 1), 3)).below_resolution.any()  # integers are exact


def test_weights_count_rows_several_times() -> None:
    torch.manual_seed(0)
    for base, dim in (make() for make in LAYOUTS.values()):
        rows = rows_of(base, dim)
        number = torch.randint(0, 4, (len(rows),))
        if len(rows):
            number[0] = 0
        got = Moments.of(base + 1e3, dim, number)
        again = np.repeat(rows_of(base + 1e3, dim), number.numpy(), axis=0)
        if len(again):
            same(got, Moments.of(torch.from_numpy(again).float()), rtol=1e-9)
        assert got.count.tolist() == [len(again)] * base.shape[dim]
        same(Moments.of(base, dim, torch.ones(len(rows), dtype=torch.bool)), Moments.of(base, dim))


def test_masked_rows_have_no_influence() -> None:
    x = torch.tensor([[1e30], [1.0], [1.001], [torch.nan]])
    got = Moments.of(x, weights=torch.tensor([False, True, True, False]))
    same(got, Moments.of(x[1:3]))
    with pytest.raises(UsageError):
        Moments.of(x, weights=torch.ones(3))


def test_nothing_recorded_is_nan() -> None:
    pooled = Moments.empty(3).pooled()
    for value in (pooled.within, pooled.between, pooled.shift_share, pooled.shift_share_raw):
        assert torch.isnan(value)
    assert torch.isnan(Moments.empty(3).variance).all()
    assert torch.isnan(Moments.empty(3).std_error).all()
    assert torch.isnan(Counts.empty(3).active_fraction).all()
    assert np.isnan(RowSample.empty(3, 4).quantiles([0.5])).all()


def test_one_row_has_no_variance_to_correct_with() -> None:
    pooled = Moments.of(torch.tensor([[1.0, 2.0]])).pooled()
    assert pooled.between == 0.25
    assert pooled.shift_share_raw == 1
    assert torch.isnan(pooled.shift_share)


def test_shift_share_is_corrected_for_sampling() -> None:
    x = torch.randn(20, 5000, generator=torch.Generator().manual_seed(0))
    pooled = Moments.of(x).pooled()
    assert float(pooled.shift_share_raw) == pytest.approx(1 / 20, rel=0.1)
    assert float(pooled.shift_share) < 0.005
    shifted = Moments.of(x + torch.randn(5000, generator=torch.Generator().manual_seed(1)))
    assert float(shifted.pooled().shift_share) == pytest.approx(0.5, abs=0.02)


def test_a_dead_neuron_counts_and_an_unseen_one_does_not() -> None:
    x = torch.tensor([[0.0, 1.0, torch.nan], [0.0, 3.0, torch.nan]])
    pooled = Moments.of(x).pooled()
    assert pooled.within == 0.5
    assert pooled.between == 1.0
