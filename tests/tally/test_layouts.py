"""Every layout, dtype and device, without waiting and without large temporaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tally_support import FLOATS, LAYOUTS, NoWaiting, exactly, naive, rows_of, same
from torch.utils._python_dispatch import TorchDispatchMode

from shiftscope import tally
from shiftscope.tally import Counts, Extrema, Moments, RowSample, counts, extrema


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


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float8_e4m3fn])
def test_other_dtypes_are_converted(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0]]).to(dtype)
    assert Moments.of(x).mean.tolist() == [0.5, 1.0]
    assert Extrema.of(x).high.tolist() == [1.0, 1.0]
    assert Counts.of(x).active.tolist() == [1, 2]
    assert RowSample.of(x, 5).quantiles([0.5]).tolist() == [[0.5, 1.0]]


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
def test_recording_never_waits_for_the_device(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, dim = LAYOUTS[name]()
    for module in (counts, extrema):  # the CPU may be asked, and is taken for a device here
        monkeypatch.setattr(module, "known_finite", lambda values: False)
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
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("name", LAYOUTS)
def test_recording_on_cuda_equals_the_cpu_and_does_not_wait(name: str) -> None:
    x, dim = LAYOUTS[name]()
    there = x.cuda()
    try:
        torch.cuda.set_sync_debug_mode("error")
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
