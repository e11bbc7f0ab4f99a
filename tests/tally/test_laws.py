"""Laws of merging, saving and misuse, for every tally."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tally_support import FLOATS, exactly, same

from shiftscope import tally
from shiftscope.errors import LoadError, MeasureError, UsageError
from shiftscope.tally import Counts, Extrema, Moments, RowSample, Tally

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
