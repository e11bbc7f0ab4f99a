"""Tallies against numpy in float64: laws of merging, dtypes, layouts, odd values, no waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import golden
from torch.utils._python_dispatch import TorchDispatchMode

from shiftscope import tally
from shiftscope.errors import LoadError, MeasureError, UsageError
from shiftscope.tally import Counts, Extrema, Moments, RowSample, Tally

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
KINDS: list[tuple[Callable[..., Tally], Callable[[int], Tally]]] = [
    (Moments.of, Moments.empty),
    (Extrema.of, Extrema.empty),
    (lambda x, **kw: Counts.of(x, saturated_outside=(-1.0, 1.0), **kw), Counts.empty),
]
PARTS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(0, 7), st.just(3)),
    elements=st.one_of(
        st.floats(-100, 100, width=32),
        st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e-30, 1e8]),
    ),
)
LAWS = settings(max_examples=60, deadline=None)


def same(a: Tally, b: Tally, rtol: float = 1e-12) -> None:
    """Equal up to rounding; m2 on the scale of the squares it is summed from."""
    x, y = a.to_arrays(), b.to_arrays()
    assert x.keys() == y.keys()
    for name in x:
        atol = 1e-300
        if name in ("mean", "m2"):
            size = np.nan_to_num(x["scale"])
            atol = rtol * (size if name == "mean" else size**2 * np.maximum(1, x["count"]))
        np.testing.assert_array_equal(np.isnan(x[name]), np.isnan(y[name]), err_msg=name)
        with np.errstate(invalid="ignore"):
            equal = (x[name] == y[name]) | (np.abs(x[name] - y[name]) <= atol + rtol * abs(y[name]))
        assert np.all(equal | np.isnan(np.asarray(x[name], dtype=float))), (name, x[name], y[name])


def rows_of(x: torch.Tensor, dim: int) -> np.ndarray:
    """[rows, neurons] in float64, the slow way."""
    return np.moveaxis(x.double().numpy(), dim, -1).reshape(-1, x.shape[dim])


def naive(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Moments of each neuron from all its finite values."""
    kept = [column[np.isfinite(column)] for column in rows.T]
    return {
        "count": np.array([len(k) for k in kept]),
        "mean": np.array([k.mean() if len(k) else np.nan for k in kept]),
        "var": np.array([k.var() if len(k) else np.nan for k in kept]),
        "low": np.array([k.min() if len(k) else np.inf for k in kept]),
        "high": np.array([k.max() if len(k) else -np.inf for k in kept]),
    }


@pytest.mark.parametrize(("of", "empty"), KINDS, ids=["moments", "extrema", "counts"])
@LAWS
@given(a=PARTS, b=PARTS, c=PARTS)
def test_laws_of_merging(
    of: Callable[..., Tally],
    empty: Callable[[int], Tally],
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
) -> None:
    x, y, z = (of(torch.from_numpy(part)) for part in (a, b, c))
    zero = empty(3)
    same(x.merge(zero), x, rtol=0)
    same(zero.merge(x), x, rtol=0)
    same(x.merge(y), y.merge(x))
    same(x.merge(y).merge(z), x.merge(y.merge(z)))
    same(of(torch.from_numpy(np.concatenate([a, b, c]))), tally.merge_all([x, y, z]))


@LAWS
@given(a=PARTS, b=PARTS, size=st.integers(0, 9), seed=st.integers(-(2**40), 2**40))
def test_laws_of_merging_row_samples(a: np.ndarray, b: np.ndarray, size: int, seed: int) -> None:
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    first = RowSample.of(x, size, seed)
    second = RowSample.of(y, size, seed, start=len(a))
    whole = RowSample.of(torch.cat([x, y]), size, seed)
    zero = RowSample.empty(3, size, seed)
    exactly(first.merge(second), whole)
    exactly(second.merge(first), whole)
    exactly(zero.merge(whole), whole)
    exactly(whole.merge(zero), whole)
    exactly(whole.thin(3), RowSample.of(torch.cat([x, y]), min(size, 3), seed))
    assert whole.exact == (len(a) + len(b) <= size)


def exactly(a: Tally, b: Tally) -> None:
    x, y = a.to_arrays(), b.to_arrays()
    for name in x:
        np.testing.assert_array_equal(x[name], y[name], err_msg=name)


LAYOUTS: dict[str, Callable[[], tuple[torch.Tensor, int]]] = {
    "rows": lambda: (torch.randn(9, 4), -1),
    "unbatched": lambda: (torch.randn(4), -1),
    "one row": lambda: (torch.randn(1, 4), 1),
    "no rows": lambda: (torch.randn(0, 4), -1),
    "no positions": lambda: (torch.randn(2, 4, 0), 1),
    "tokens": lambda: (torch.randn(2, 5, 4), 2),
    "images": lambda: (torch.randn(3, 4, 5, 6), 1),
    "volumes": lambda: (torch.randn(2, 4, 3, 2, 2), 1),
    "unbatched image": lambda: (torch.randn(4, 5, 6), 0),
    "channels last": lambda: (
        torch.randn(3, 4, 5, 6).contiguous(memory_format=torch.channels_last),
        1,
    ),
    "transposed": lambda: (torch.randn(4, 9).T, -1),
    "strided": lambda: (torch.randn(9, 12)[::2, ::3], -1),
    "heads": lambda: (torch.randn(2, 3, 5, 4).transpose(1, 2), -1),
    "cropped image": lambda: (torch.randn(3, 4, 7, 8)[:, :, 1:6, 2:7], 1),
    "features first": lambda: (torch.randn(5, 4, 6).transpose(1, 2).movedim(2, 0), 0),
    "expanded": lambda: (torch.randn(1, 5, 4).expand(3, 5, 4), -1),
    "expanded positions": lambda: (torch.randn(3, 4, 1, 1).expand(3, 4, 5, 6), 1),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("block", [5, 1 << 17])
def test_every_layout_and_dtype(
    name: str, dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shiftscope.tally.layout._CPU_BLOCK", block)
    torch.manual_seed(0)
    base, dim = LAYOUTS[name]()
    x = base.to(dtype)
    if name.startswith("expanded"):
        x = base[:1, :, :1, :1].to(dtype).expand_as(base) if base.ndim == 4 else x
    rows = rows_of(x, dim)
    want = naive(rows)
    moments, extrema = Moments.of(x, dim), Extrema.of(x, dim)
    counts = Counts.of(x, dim, 0.25, (-0.5, 0.5))
    np.testing.assert_array_equal(moments.count, want["count"])
    np.testing.assert_allclose(moments.mean, want["mean"], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(moments.variance, want["var"], rtol=1e-11, atol=1e-15)
    np.testing.assert_array_equal(extrema.low, want["low"])
    np.testing.assert_array_equal(extrema.high, want["high"])
    np.testing.assert_array_equal(counts.count, len(rows))
    np.testing.assert_array_equal(counts.active, (rows > 0.25).sum(0))
    np.testing.assert_array_equal(counts.saturated, (np.abs(rows) >= 0.5).sum(0))
    sample = RowSample.of(x, 1000, feature_dim=dim)
    assert sample.rows.dtype == dtype
    np.testing.assert_array_equal(np.sort(sample.rows.double().numpy(), 0), np.sort(rows, 0))


def test_rows_are_numbered_batch_major_in_every_layout() -> None:
    torch.manual_seed(0)
    for base, dim in (make() for make in LAYOUTS.values()):
        plain = torch.from_numpy(rows_of(base, dim).copy()).float()
        got, want = RowSample.of(base, 6, 3, 11, dim), RowSample.of(plain, 6, 3, 11)
        exactly(got, want)


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


def test_a_mixture_of_dtypes_has_the_coarsest_resolution() -> None:
    fine, coarse = Moments.of(torch.ones(2, 1)), Moments.of(torch.ones(2, 1).bfloat16())
    assert fine.merge(coarse).eps == coarse.merge(fine).eps == torch.finfo(torch.bfloat16).eps


def test_counts_beyond_two_to_the_24() -> None:
    x = torch.tensor([[1.0], [2.0]])
    moments, counts = Moments.of(x), Counts.of(x)
    for _ in range(40):
        moments, counts = moments.merge(moments), counts.merge(counts)
    one = Moments.of(torch.tensor([[3.0]]))
    assert moments.merge(one).count.tolist() == [2**41 + 1]
    assert counts.merge(Counts.of(torch.tensor([[3.0]]))).active.tolist() == [2**41 + 1]
    np.testing.assert_allclose(moments.mean, [1.5], rtol=1e-12)
    np.testing.assert_allclose(moments.variance, [0.25], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float8_e4m3fn])
def test_other_dtypes_are_converted(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0]]).to(dtype)
    assert Moments.of(x).mean.tolist() == [0.5, 1.0]
    assert Extrema.of(x).high.tolist() == [1.0, 1.0]
    assert Counts.of(x).active.tolist() == [1, 2]
    assert RowSample.of(x, 5).quantiles([0.5]).tolist() == [[0.5, 1.0]]


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


@pytest.mark.parametrize("case", ["standard", "with_bias", "lcw", "data_aware_lcw"])
def test_golden_decomposition(case: str) -> None:
    data = golden("variance_decomposition")
    w, a = (torch.tensor(data[k], dtype=torch.float64) for k in ("W", "A_columns_are_samples"))
    mean = a.mean(1)
    if case == "lcw":
        w = w - w.mean(1, keepdim=True)
    elif case == "data_aware_lcw":
        w = w - torch.outer(w @ mean, mean) / (mean @ mean)
    bias = torch.tensor(data["bias"], dtype=torch.float64) if case == "with_bias" else 0.0
    want, got = data[case], Moments.of((w @ a).T + bias)
    pooled, inputs = got.pooled(), Moments.of(a.T).pooled()
    for value, name in (
        (got.mean, "E_z"),
        (got.variance, "V_z"),
        (pooled.within, "within"),
        (pooled.between, "between"),
        (pooled.total, "pooled"),
        (pooled.shift_share_raw, "shift_share"),
        (inputs.within, "input_within"),
        (inputs.between, "input_between"),
        (inputs.total, "input_pooled"),
    ):
        np.testing.assert_allclose(value, want[name], rtol=1e-12, atol=1e-12, err_msg=name)
    gain = pooled.total / inputs.within
    np.testing.assert_allclose(gain, want["amp_fw_pooled_over_within"], rtol=1e-12)


def test_golden_bias_absorbed() -> None:
    data = golden("variance_decomposition")
    w, a = (torch.tensor(data[k], dtype=torch.float64) for k in ("W", "A_columns_are_samples"))
    got, want = Moments.of((w @ (a - a.mean(1, keepdim=True))).T), data["bias_absorbed"]
    np.testing.assert_allclose(got.mean, want["E_z"], atol=1e-12)
    np.testing.assert_allclose(got.variance, want["V_z"], rtol=1e-12)
    np.testing.assert_allclose(got.pooled().shift_share_raw, want["shift_share"], atol=1e-12)


def test_golden_propositions() -> None:
    data = golden("propositions")
    w, a = (torch.tensor(data[k], dtype=torch.float64) for k in ("W", "A_columns_are_samples"))
    got = Moments.of((w @ a).T)
    for name, value in (("E_z", got.mean), ("V_z", got.variance)):
        want = [row[name] for row in data["prop2_empirical"]]
        np.testing.assert_allclose(value, want, rtol=1e-12, atol=1e-12)
    part = data["prop5_general_empirical"]
    grad_z = torch.tensor(part["grad_z_columns_are_samples"], dtype=torch.float64)
    back = Moments.of((w.T @ grad_z).T)
    np.testing.assert_allclose(back.mean, part["E_grad_a"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(back.variance, part["V_grad_a"], rtol=1e-12, atol=1e-12)


def test_golden_convolution_outputs() -> None:
    for case in golden("conv")["cases"].values():
        x, w, b = (torch.tensor(case[k], dtype=torch.float64) for k in ("X", "weight", "bias"))
        args = (case["stride"], case["padding"], case["dilation"], case["groups"])
        got = Moments.of(torch.nn.functional.conv2d(x, w, b, *args), feature_dim=1)
        np.testing.assert_allclose(got.mean, case["E_z_channel"], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(got.variance, case["V_z_channel"], rtol=1e-12, atol=1e-12)


def nan_quantile(column: np.ndarray, qs: list[float]) -> np.ndarray:
    kept = column[~np.isnan(column)]
    return np.quantile(kept, qs) if len(kept) else np.full(len(qs), np.nan)


@pytest.mark.parametrize("dtype", FLOATS)
def test_quantiles_equal_numpys(dtype: torch.dtype) -> None:
    x = torch.randn(97, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    qs = [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0]
    got = RowSample.of(x[:40], 97).merge(RowSample.of(x[40:], 97, start=40)).quantiles(qs)
    np.testing.assert_allclose(got, np.quantile(x.double(), qs, axis=0), rtol=1e-12, atol=1e-14)
    x[5:9, 2], x[:, 3], x[0, 4] = torch.nan, torch.nan, torch.inf
    got = RowSample.of(x, 97).quantiles(qs)
    with np.errstate(invalid="ignore"):
        want = np.stack([nan_quantile(column, qs) for column in x.double().numpy().T], axis=1)
    finite = np.isfinite(want)
    np.testing.assert_allclose(got[finite], want[finite], rtol=1e-12, atol=1e-14)
    assert np.isnan(got[:, 3]).all()
    assert got[-1, 4] == np.inf


def test_quantiles_of_many_neurons_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shiftscope.tally.rowsample._COLUMNS", 4)
    x = torch.randn(20, 11)
    got = RowSample.of(x, 20).quantiles([0.3])
    np.testing.assert_allclose(got, np.quantile(x.double(), [0.3], axis=0), rtol=1e-12)


def test_a_sample_is_uniform_and_leaves_torchs_random_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    rows = torch.arange(20_000.0)[:, None]
    hits = torch.zeros(20)
    for seed in range(40):
        sample = RowSample.of(rows, 500, seed)
        hits += torch.histc(sample.rows, 20, 0, 20_000)
    assert torch.equal(torch.random.get_rng_state(), before)
    chi2 = float(((hits - 1000) ** 2 / 1000).sum())
    assert 4 < chi2 < 50  # 19 degrees of freedom: outside with a probability of 2e-4
    one, two = RowSample.of(rows, 500, 1), RowSample.of(rows, 500, 2)
    assert len(set(one.rows.flatten().tolist()) & set(two.rows.flatten().tolist())) < 40


def test_neighbouring_seeds_and_rows_give_unrelated_priorities() -> None:
    rows = torch.zeros(1000, 1)
    table = torch.stack([RowSample.of(rows, 1000, s).priority for s in range(8)]).flatten()
    assert len(table.unique()) == 8000


def test_a_sample_keeps_no_reference_to_the_tensor() -> None:
    x = torch.randn(4, 3)
    sample = RowSample.of(x, 8)
    kept = sample.rows.clone()
    x.zero_()
    assert torch.equal(sample.rows, kept)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Moments.of(x),
        lambda x: Extrema.of(x),
        lambda x: Counts.of(x),
        lambda x: RowSample.of(x, 4, seed=-3),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_saved_and_moved_tallies_are_the_same(
    make: Callable[[torch.Tensor], Tally], dtype: torch.dtype, tmp_path: Any
) -> None:
    first = make(torch.randn(9, 3).to(dtype))
    np.savez(tmp_path / "t.npz", **first.to_arrays())
    with np.load(tmp_path / "t.npz", allow_pickle=False) as arrays:
        exactly(type(first).from_arrays(dict(arrays)), first)
    exactly(first.to("cpu"), first)


def test_misuse_is_told() -> None:
    x = torch.zeros(2, 3)
    for error, call in (
        (UsageError, lambda: Moments.of(torch.tensor(1.0))),
        (UsageError, lambda: Extrema.of(torch.zeros(4, 0))),
        (UsageError, lambda: Counts.of(x, feature_dim=2)),
        (MeasureError, lambda: Moments.of(x.to(torch.complex64))),
        (MeasureError, lambda: Moments.of(x.to_sparse())),
        (UsageError, lambda: Counts.of(x, saturated_outside=(1.0, 1.0))),
        (UsageError, lambda: RowSample.of(x, -1)),
        (UsageError, lambda: RowSample.of(x, 1).quantiles([1.5])),
        (UsageError, lambda: RowSample.of(x, 1).merge(RowSample.of(x, 1, seed=1))),
        (UsageError, lambda: Moments.of(x).merge(Moments.empty(4))),
        (UsageError, lambda: tally.merge_all([])),
        (LoadError, lambda: Moments.from_arrays({"count": np.zeros(1)})),
    ):
        with pytest.raises(error) as caught:
            call()
        assert caught.value.reason
        assert caught.value.remedy


class NoWaiting(TorchDispatchMode):
    """Refuses every operation whose result, or whose shape, the host would have to wait for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func.overloadpacket).removeprefix("aten.")
        assert name.strip("_") not in {w.strip("_") for w in self.WAITING}, name
        for value in args[1] if name == "index" else ():
            assert value is None or value.dtype != torch.bool
        assert "device" not in (kwargs or {}) or name != "_to_copy"
        return func(*args, **(kwargs or {}))


def record(x: torch.Tensor, dim: int) -> None:
    weights = torch.ones(x.numel() // x.shape[dim], device=x.device)
    for tallies in (
        [Moments.of(x, dim), Moments.of(x, dim, weights), Moments.empty(x.shape[dim], x.device)],
        [Extrema.of(x, dim)] * 2,
        [Counts.of(x, dim, saturated_outside=(0.0, 1.0))] * 2,
        [RowSample.of(x, 5, 0, 0, dim), RowSample.of(x, 5, 0, 99, dim).thin(2)],
    ):
        merged: Any = tally.merge_all(tallies)
        if isinstance(merged, Moments):
            merged.pooled()
            merged.below_resolution.logical_not()
        if isinstance(merged, Counts):
            merged.active_fraction.sqrt()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_recording_never_waits_for_the_device(name: str, dtype: torch.dtype) -> None:
    x, dim = LAYOUTS[name]()
    with NoWaiting():
        record(x.to(dtype), dim)
    record(x.to("meta").to(dtype), dim)  # has no values that could be looked at


class Largest(TorchDispatchMode):
    """Remembers the most bytes any operation allocated outside the storage of `source`."""

    def __init__(self, source: torch.Tensor) -> None:
        super().__init__()
        self.source, self.bytes = source.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            storage = part.untyped_storage() if isinstance(part, torch.Tensor) else None
            if storage is not None and storage.data_ptr() != self.source:
                self.bytes = max(self.bytes, storage.nbytes())
        return result


@pytest.mark.parametrize(
    ("shape", "dim", "turn"),
    [
        ((60_000, 64), -1, lambda x: x),
        ((16, 64, 60, 60), 1, lambda x: x),
        ((16, 60, 60, 64), 1, lambda x: x.movedim(-1, 1)),
        ((64, 8, 120, 64), -1, lambda x: x.transpose(1, 2)),
        ((1, 60, 64), -1, lambda x: x.expand(1000, 60, 64)),
    ],
)
def test_temporaries_stay_small(
    shape: tuple[int, ...], dim: int, turn: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    x = turn(torch.zeros(shape))
    with Largest(x) as largest:
        record(x, dim)
    rows = x.numel() // x.shape[dim]
    assert largest.bytes <= max(1 << 20, 8 * rows)  # row numbers and weights: 8 bytes a row


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", LAYOUTS)
def test_recording_on_cuda_equals_the_cpu_and_does_not_wait(name: str) -> None:
    x, dim = LAYOUTS[name]()
    there = x.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        record(there, dim)
        tallies = [Moments.of(there, dim), Extrema.of(there, dim), Counts.of(there, dim)]
        sample = RowSample.of(there, 5, feature_dim=dim)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    here = [Moments.of(x, dim), Extrema.of(x, dim), Counts.of(x, dim)]
    for got, want in zip(tallies, here, strict=True):
        same(got.to("cpu"), want)
    exactly(sample, RowSample.of(x, 5, feature_dim=dim))


def test_recording_works_under_autocast_inference_and_gradients() -> None:
    x = torch.full((3000, 2), 1.0, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        counts, moments = Counts.of(x), Moments.of(x * 1.0)
    assert counts.active.tolist() == moments.count.tolist() == [3000, 3000]
    assert not moments.mean.requires_grad
    with torch.inference_mode():
        assert Moments.of(x).merge(Moments.of(x)).count.tolist() == [6000, 6000]
