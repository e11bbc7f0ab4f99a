"""What is read in a step, by several threads, in several forms, and where a reader fails."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from tally_support import READERS, read_by
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.capture import device_reader
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.readings import IMAGE, ROWS
from shiftscope.capture.recorder import Settings
from shiftscope.record import SiteInfo
from shiftscope.tally.launches import Launch


@pytest.fixture(autouse=True, params=READERS)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here holds for each way of reading a tensor."""
    read_by(request.param, monkeypatch)
    return str(request.param)


def test_steps_of_another_precision_are_kept_apart() -> None:
    recorder = LeanRecorder(Settings())
    state = recorder._state(SiteInfo("x", "activation", "relu", "x", 3))
    slot = recorder.slot(state, "z")
    for dtype in (torch.float32, torch.bfloat16):
        recorder.take(slot, torch.randn(8, 3).to(dtype), ROWS)
        recorder.tell(state, "calls")
        recorder.flush()
    assert recorder.records()["x"].streams["z"].moments.eps == torch.finfo(torch.bfloat16).eps


def test_another_thread_may_read_while_a_step_is_merged(reader: str) -> None:
    if reader == "triton":
        pytest.skip("Triton's interpreter serves one thread")
    recorder = LeanRecorder(Settings())
    state = recorder._state(SiteInfo("x", "activation", "relu", "x", 300))
    slot = recorder.slot(state, "z")

    def read() -> None:
        for _ in range(100):
            recorder.take(slot, torch.full((300, 300), 2.0), ROWS)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    for _ in range(20):
        recorder.take(slot, torch.full((100, 300), 2.0), ROWS)
        recorder.tell(state, "calls")
        recorder.flush()
    for thread in readers:
        thread.join()
    recorder.flush()
    moments = recorder.records()["x"].streams["z"].moments
    assert (moments.mean == 2.0).all()
    assert (moments.m2 == 0.0).all()
    assert (moments.count >= 20 * 100).all()


def test_structures_that_alternate_stay_open(reader: str) -> None:
    if reader == "torch":
        pytest.skip("torch's kernels keep one structure open")
    torch.manual_seed(0)
    body, one, other = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 3)
    model = nn.ModuleDict({"body": body, "one": one, "other": other})
    model.forward = lambda x, head: model[head](body(x))  # type: ignore[method-assign]
    batches = [torch.randn(8, 4) for _ in range(12)]
    with ss.watch(model, every=1, window=50) as probe:
        for number, x in enumerate(batches):
            model(x, ("one", "other")[number % 2]).sum().backward()
            probe.step()
        recorder = probe._phases.recorders["train"]
        paged = recorder.readers.compiled or next(iter(recorder.readers.devices._readers.values()))
        assert 2 <= len(paged._open) <= 4  # the first step of each is parsed in another order
    records = probe.trace.last.records
    z = torch.stack([body(x) for x in batches]).double().flatten(0, 1)
    torch.testing.assert_close(records["body"].streams["z"].moments.mean, z.mean(0).detach())
    assert records["body"].streams["z"].moments.count.tolist() == [96] * 6
    assert records["one"].streams["z"].moments.count.tolist() == [48] * 2


def run_steps(model: nn.Module, x: Tensor, probe: Any) -> None:
    for _ in range(3):
        model(x)
        probe.step()


def test_triton_that_fails_is_told_and_replaced(
    reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reader != "triton":
        pytest.skip("of the reader on a GPU")
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid()), torch.randn(6, 3)
    launched = []
    run = Launch._run

    def fail_at_the_third(*given: Any) -> None:
        launched.append(given)
        if len(launched) == 3:
            raise RuntimeError("no C compiler")
        run(*given)

    monkeypatch.setattr(Launch, "_run", fail_at_the_third)
    with ss.watch(model, every=1) as probe:
        with pytest.warns(RuntimeWarning, match=r"torch's kernels.*no C compiler"):
            run_steps(model, x, probe)
        got = probe.snapshot().records
    for site, stream, want in (("0", "z", model[0](x)), ("1", "a", model(x))):
        moments = got[site].streams[stream].moments
        assert moments.count.tolist() == [18] * 4
        torch.testing.assert_close(moments.mean, want.detach().double().mean(0), atol=1e-6, rtol=0)


def test_two_passes_of_a_convolution_in_one_step(
    reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU adds the entries of one list at once: no total may stand in it twice."""
    together: list[int] = []
    add = torch._foreach_add_

    def watched(totals: list[Tensor], means: list[Tensor], **more: Any) -> None:
        assert len({id(total) for total in totals}) == len(totals)
        together.append(len(totals))
        add(totals, means, **more)

    monkeypatch.setattr(torch, "_foreach_add_", watched)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Sigmoid(), nn.Conv2d(3, 2, 3))
    batches = [torch.rand(4, 2, 6, 6) + k for k in range(6)]
    with ss.watch(model, every=1, window=50) as probe:
        for first, second in zip(batches[::2], batches[1::2], strict=True):
            model(first)
            model(second)
            probe.step()
    want = ss.analyze(model, batches[:2], dtype=torch.float64).records
    for site in ("0", "2"):
        mine, theirs = probe.trace.last.records[site].weights, want[site].weights
        assert mine is not None
        assert theirs is not None
        np.testing.assert_allclose(mine.mu, theirs.mu, rtol=1e-5)
    assert (reader == "triton") == bool(together)


def test_views_of_one_base_with_other_channels_are_other_tensors(reader: str) -> None:
    recorder = LeanRecorder(Settings())
    base = torch.arange(64.0)
    states = [recorder._state(SiteInfo(n, "activation", "relu", n, 4)) for n in ("x", "y")]
    slots = [recorder.slot(state, "z") for state in states]
    views = [base.view(2, 4, 8), base.view(4, 4, 4)]
    for slot, view in zip(slots, views, strict=True):
        recorder.take(slot, view, IMAGE)
    for state in states:
        recorder.tell(state, "calls")
    recorder.flush()
    records = recorder.records()
    for name, view in zip(("x", "y"), views, strict=True):
        mean = records[name].streams["z"].moments.mean
        torch.testing.assert_close(mean, view.double().mean((0, 2)))


def test_tensors_without_an_address_are_read_by_torch(reader: str) -> None:
    if reader != "triton":
        pytest.skip("of the reader on a GPU")
    x = torch.rand(6, 3)
    negated = torch._neg_view(x)
    found = device_reader.DeviceReaders()
    assert found.read(x, 0, ROWS, False) is not None
    assert found.read(negated, 0, ROWS, False) is None
    assert found.read(x.as_subclass(type("Own", (Tensor,), {})), 0, ROWS, False) is None


def test_a_step_for_which_memory_runs_out_is_left_out(
    reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reader != "triton":
        pytest.skip("of the reader on a GPU")
    recorder, x = LeanRecorder(Settings()), torch.rand(6, 3)
    state = recorder._state(SiteInfo("x", "activation", "relu", "x", 3))
    make = device_reader._Reader._new

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    for step, new in enumerate((full, make)):
        monkeypatch.setattr(device_reader._Reader, "_new", new)
        recorder.step = step
        recorder.take(recorder.slot(state, "z"), x + step, ROWS)
        recorder.tell(state, "calls")
        if step:
            recorder.flush()
        else:
            with pytest.warns(RuntimeWarning, match="left out step 0 on cpu: out of memory"):
                recorder.flush()
    moments = recorder.records()["x"].streams["z"].moments
    assert moments.count.tolist() == [6] * 3  # of the second step, through Triton again
    torch.testing.assert_close(moments.mean, (x + 1).double().mean(0))
    assert not recorder.readers.devices._failed
