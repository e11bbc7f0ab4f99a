"""Streaming moments against a twin that stores every row."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from shiftscope.theory.claims import Bench
from shiftscope.theory.montecarlo import (
    compare_means,
    compare_ratio,
    compare_variances,
    differs,
    identity,
    row_moments,
)
from shiftscope.theory.samplers import LAWS, Source


def bench(samples: int, chunk: int = 1 << 15, seed: int = 0) -> Bench:
    return Bench(torch.Generator().manual_seed(seed), samples, chunk)


def test_streamed_moments_equal_those_of_all_rows_stored() -> None:
    stored: list[np.ndarray] = []

    def draw(generator: torch.Generator, rows: int) -> torch.Tensor:
        # A mean far above the spread: what naive sums of squares lose.
        part = 1e4 + LAWS["laplace"].noise(generator, (rows, 3))
        stored.append(part.numpy().copy())
        return part

    result = row_moments(bench(2500, chunk=700), draw, torch.full((3,), 1e4, dtype=torch.float64))
    rows = np.concatenate(stored)
    assert [len(part) for part in stored] == [700, 700, 700, 400]
    np.testing.assert_allclose(result.mean, rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(result.variance, rows.var(axis=0, ddof=1), rtol=1e-10)
    fourth = ((rows - rows.mean(axis=0)) ** 4).mean(axis=0)
    error = np.sqrt((fourth - rows.var(axis=0) ** 2) / 2500)
    np.testing.assert_allclose(result.variance_error, error, rtol=1e-9)
    np.testing.assert_allclose(result.mean_error, rows.std(axis=0) / 50, rtol=1e-10)


def test_comparisons_are_in_standard_errors() -> None:
    result = row_moments(
        bench(10_000),
        lambda g, rows: LAWS["gaussian"].noise(g, (rows, 2)),
        torch.zeros(2, dtype=torch.float64),
    )
    first = compare_means(result, torch.tensor([0.1, 0.0]))[0]
    assert first.z == pytest.approx((first.estimate - 0.1) / first.standard_error)
    assert first.p == pytest.approx(2 * stats.norm.sf(abs(first.z)))
    second = compare_variances(result, [1.5, 1.0])[0]
    relative = second.standard_error / second.estimate
    assert second.z == pytest.approx(math.log(second.estimate / 1.5) / relative)
    within = compare_variances(result, [1.01, 1.0], rounding=0.1)
    assert [c.z for c in within] == [0.0, 0.0]


def test_ratios_use_the_delta_method_and_students_t() -> None:
    tops: list[np.ndarray] = []
    bottoms: list[np.ndarray] = []

    def draw(generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        bottom = 2 + LAWS["uniform"].noise(generator, (count,)) / 3
        top = 3 * bottom + LAWS["gaussian"].noise(generator, (count,))
        tops.append(top.numpy())
        bottoms.append(bottom.numpy())
        return top, bottom

    (result,) = compare_ratio(bench(6400), draw, 3.05, "ratio", rows=64)
    top, bottom = np.concatenate(tops), np.concatenate(bottoms)
    assert top.size == 100
    ratio = top.mean() / bottom.mean()
    error = np.sqrt(((top - ratio * bottom) ** 2).mean() / 99) / bottom.mean()
    assert result.estimate == pytest.approx(ratio, rel=1e-12)
    assert result.standard_error == pytest.approx(error, rel=1e-9)
    assert result.p == pytest.approx(2 * stats.t.sf(abs(ratio - 3.05) / error, 99), rel=1e-6)


def test_identities_are_exact_or_fail() -> None:
    assert identity("x", 1.0, 1.0 + 1e-13).z == 0
    assert identity("x", 1.0, 1.0 + 1e-8).z == math.inf
    assert differs("x", 1.0, 1.0).z == math.inf
    assert differs("x", 1.0, 1.1).z == 0


@pytest.mark.parametrize("name", LAWS)
def test_every_law_has_the_moments_it_promises(name: str) -> None:
    mean = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64)
    law = Source(LAWS[name], mean, 1.7)
    rows = law.draw(torch.Generator().manual_seed(3), 200_000)
    error = 1.7 / math.sqrt(200_000)
    np.testing.assert_allclose(rows.mean(0), mean, atol=5 * error)
    np.testing.assert_allclose(
        torch.cov(rows.T).numpy(), law.covariance.numpy(), atol=5 * 1.7**2 * 2.5 / math.sqrt(2e5)
    )


def test_progress_counts_every_row_once() -> None:
    seen: Counter[int] = Counter()
    work = bench(1000, chunk=300)
    work.tick = lambda rows: seen.update([rows])
    row_moments(
        work,
        lambda g, rows: LAWS["signs"].noise(g, (rows, 1)),
        torch.zeros(1, dtype=torch.float64),
    )
    assert work.done == sum(rows * times for rows, times in seen.items()) == 1000
