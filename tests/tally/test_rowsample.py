"""Row samples: uniform, reproducible, and right in their quantiles."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
import torch
from tally_support import FLOATS

from shiftscope.errors import UsageError
from shiftscope.tally import RowSample


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


@pytest.mark.parametrize("size", [3, 16, 500])
def test_merging_many_at_once_is_merging_one_by_one(size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 4)
    starts = [0, 7, 100, 101, 250, 300]
    parts = [RowSample.of(x[a:b], size, seed=5, start=a) for a, b in pairwise(starts)]
    at_once, whole = parts[0].merge_all(parts[1:]), RowSample.of(x, size, seed=5)
    chain = reduce(RowSample.merge, parts)
    for other in (chain, whole):
        assert torch.equal(at_once.priority, other.priority)
        assert torch.equal(at_once.rows, other.rows)
        assert (at_once.seen, at_once.size) == (other.seen, other.size)
    assert parts[0].merge_all([]) is parts[0]
    with pytest.raises(UsageError, match="seeds 5 and 6"):
        parts[0].merge_all([parts[1], RowSample.of(x, size, seed=6)])
