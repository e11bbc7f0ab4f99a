"""Moving many tensors at once: the same values, one transfer, and nothing for what is there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tally_support import FLOATS, as_if_on_a_device, exactly
from torch import Tensor

from shiftscope.tally import Counts, Extrema, Moments, RowSample, transfer
from shiftscope.tally.transfer import groups_to_host, sent, tallies_to_host, to_devices, to_host

CPU = torch.device("cpu")


def various() -> list[Tensor]:
    """All dtypes and layouts that are moved, numbers of all sizes before wider ones."""
    found = [torch.randn(3, 5).to(dtype) for dtype in FLOATS]
    found += [torch.tensor(2.5), torch.arange(7), torch.tensor([True, False, True])]
    found += [torch.empty(0, 4), torch.randn(4, 6).T, torch.randn(6, 6)[::2, ::3]]
    found += [torch.arange(5, dtype=torch.uint8), torch.randn(1, 3).expand(2, 3)]
    return [torch.tensor([1], dtype=torch.uint8), *found]


def test_values_dtypes_and_shapes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = various()
    runs = as_if_on_a_device(monkeypatch)
    moved = to_host(tensors)
    assert len(runs) == 1
    for old, new in zip(tensors, moved, strict=True):
        assert new.dtype == old.dtype
        assert torch.equal(old, new)
        assert new.numel() == 0 or new.data_ptr() != old.data_ptr()


def test_conjugates_and_negatives_that_are_mere_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_on_a_device(monkeypatch)
    tensors = [torch.randn(3, dtype=torch.complex64).conj(), torch._neg_view(torch.randn(4))]
    for given in (tensors, tensors[:1], tensors[1:]):
        for old, new in zip(given, to_host(given), strict=True):
            assert torch.equal(old, new)


def test_where_no_memory_can_be_pinned_it_is_copied_as_it_is() -> None:
    copies: list[Any] = []

    def pin_memory() -> Any:
        raise RuntimeError("CUDA error: OS call failed or operation not supported")

    run: Any = SimpleNamespace(is_cpu=True, pin_memory=pin_memory, to=copies.append)
    sent(run, torch.device("cuda", 0))
    assert copies == [torch.device("cuda", 0)]


def test_what_is_there_is_passed_through() -> None:
    tensors = various()
    for moved in (to_host(tensors), to_devices(tensors, [CPU] * len(tensors))):
        assert all(new is old for old, new in zip(tensors, moved, strict=True))
    tally = Moments.of(torch.randn(4, 3))
    assert tallies_to_host([tally])[0] is tally


def test_a_tensor_is_moved_once_however_often_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = torch.randn(8), torch.randn(2)
    runs = as_if_on_a_device(monkeypatch)
    moved = to_host([one, other, one])
    assert moved[0] is moved[2]
    assert runs == [torch.Size([4 * 10])]


def test_one_that_is_kept_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_on_a_device(monkeypatch)
    for tensor in to_host([torch.randn(8), torch.randn(100), torch.randn(3).double()]):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_large_ones_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_MOST", 100)
    tensors = [torch.randn(size) for size in (10, 10, 40, 10, 5)]
    runs = as_if_on_a_device(monkeypatch)
    moved = to_host(tensors)
    assert [run.numel() for run in runs] == [80, 160, 60]
    assert all(torch.equal(old, new) for old, new in zip(tensors, moved, strict=True))


def test_none_and_groups_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = as_if_on_a_device(monkeypatch)
    assert to_host([]) == []
    assert groups_to_host([[], []]) == [[], []]
    assert not runs
    [[one], [], [two, three]] = groups_to_host(
        [[torch.ones(1)], [], [torch.ones(2), torch.ones(3)]]
    )
    assert [len(tensor) for tensor in (one, two, three)] == [1, 2, 3]


def test_tallies_keep_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(9, 4)
    tallies = [Moments.of(x), Extrema.of(x), Counts.of(x), RowSample.of(x, 5), Moments.empty(2)]
    runs = as_if_on_a_device(monkeypatch)
    moved = tallies_to_host(tallies)
    assert len(runs) == 1
    for old, new in zip(tallies, moved, strict=True):
        assert type(new) is type(old)
        exactly(old, new)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_there_and_back() -> None:
    tensors = various()
    there = to_devices(tensors, [torch.device("cuda", 0)] * len(tensors))
    assert all(tensor.is_cuda for tensor in there)
    for old, new in zip(tensors, to_host(there), strict=True):
        assert new.is_cpu
        assert torch.equal(old, new)
