"""Statistics of the data that went in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_cases import RNG

from shiftscope.io import input_statistics


@pytest.mark.parametrize("shape", [(50, 3, 4, 5), (50, 7), (50, 32, 2)])
def test_input_statistics_against_numpy(shape: tuple[int, ...]) -> None:
    x = (RNG.standard_normal(shape) * 0.01 + 1000).astype(np.float32)
    y = torch.arange(50) % 4
    batches = [(torch.from_numpy(x[i : i + 8]), y[i : i + 8]) for i in range(0, 50, 8)]
    found = input_statistics(batches)
    wide = x.astype(np.float64)
    pooled = wide.reshape(1, -1) if shape[1] != 3 else wide.transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(found["mean"], pooled.mean(1), rtol=1e-13)
    np.testing.assert_allclose(found["std"], pooled.std(1), rtol=1e-9)
    assert found["min"] == pooled.min(1).tolist()
    assert found["max"] == pooled.max(1).tolist()
    assert (found["rows"], found["shape"], found["nonfinite"]) == (50, list(shape[1:]), 0.0)
    assert found["classes"] == {"0": 13, "1": 13, "2": 12, "3": 12}


def test_input_statistics_count_what_is_not_finite_and_leave_it_out() -> None:
    x = torch.tensor([[[1.0], [torch.nan]], [[3.0], [torch.inf]]])
    found = input_statistics([x])
    assert found["mean"] == [2.0, None]
    assert found["std"] == [1.0, None]
    assert found["max"] == [3.0, None]
    assert found["nonfinite"] == 0.5
    assert found["classes"] is None


def test_input_statistics_of_nothing() -> None:
    found = input_statistics([])
    assert (found["rows"], found["mean"], found["nonfinite"]) == (0, [], None)
