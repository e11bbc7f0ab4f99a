"""Packed quantiles come back within their steps."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import sick

from shiftscope.reporting.strips import MOST_NEURONS, STEPS, Packed, pack, strips

Array = npt.NDArray[np.float64]


def unpack(packed: Packed) -> tuple[Array, Array]:
    """What the page does, in numpy: neuron numbers and quantiles [5, n]."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), dtype=np.uint8)
    n, offset, parts = packed["n"], 0, []
    for width in (4, 2, 2, 2, 2, 2):
        plane = raw[offset : offset + n * width].reshape(width, n).astype(np.float64)
        parts.append((plane * 256.0 ** np.arange(width)[:, None]).sum(axis=0))
        offset += n * width
    assert offset == len(raw)
    neurons, rise, down, low, up, high = parts
    q50 = np.cumsum(rise)
    steps = np.stack([q50 - down - low, q50 - down, q50, q50 + up, q50 + up + high])
    return neurons, packed["low"] + steps * (packed["high"] - packed["low"]) / STEPS


@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1.0, 1e30]))
def test_round_trip(neurons: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    table = np.sort(rng.standard_t(2, (5, neurons)), axis=0) * scale
    packed = pack(table)
    assert packed is not None
    names, back = unpack(packed)
    order = names.astype(int)
    assert sorted(order) == list(range(neurons))
    assert (np.diff(back[2]) >= 0).all()
    step = (table.max() - table.min()) / STEPS
    np.testing.assert_allclose(back, table[:, order], rtol=0, atol=0.51 * step)


def test_constants_and_unmeasured_neurons() -> None:
    table = np.full((5, 4), 2.5)
    table[:, 1] = np.nan
    packed = pack(table)
    assert packed is not None
    names, back = unpack(packed)
    assert list(names) == [0, 2, 3]
    assert (back == 2.5).all()
    assert pack(np.full((5, 3), np.nan)) is None


def test_very_wide_sites_are_thinned_and_say_so() -> None:
    table = np.sort(np.random.default_rng(0).normal(size=(5, 70_000)), axis=0)
    packed = pack(table)
    assert packed is not None
    assert (packed["n"], packed["of"]) == (MOST_NEURONS, 70_000)
    names, back = unpack(packed)
    assert names.max() > 65_535
    assert back[2, 0] == pytest.approx(table[2].min(), abs=0.01)


def test_the_budget_is_kept_and_what_is_missing_is_named() -> None:
    names = list(sick().records)
    everything, none = strips(sick(), names, 10**9)
    assert (list(everything), none) == (names, [])
    budget = sum(len(p["data"]) for p in everything[names[0]].values()) + 10
    some, missing = strips(sick(), names, budget)
    assert list(some) == names[:1]
    assert missing == names[1:]
