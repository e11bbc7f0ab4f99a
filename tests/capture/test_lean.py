"""Lean recording against a naive float64 reference, and the accuracy gate that outranks speed."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from tally_support import READERS, read_by
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.capture.lean import LeanRecorder
from shiftscope.capture.readings import IMAGE, ROWS, read, read_centred
from shiftscope.capture.recorder import Settings
from shiftscope.record import SiteInfo

Rows = npt.NDArray[np.float64]


@pytest.fixture(autouse=True, params=READERS)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here holds for each way of reading a tensor."""
    read_by(request.param, monkeypatch)
    return str(request.param)


def naive(tensor: Tensor, dim: int) -> tuple[Rows, Rows]:
    rows = tensor.detach().double().movedim(dim, -1).flatten(0, -2).numpy()
    return rows.mean(axis=0), rows.var(axis=0)


SHAPES = [
    ((1, 7), -1), ((2, 3), -1), ((128, 16), -1), ((131, 5), -1), ((1000, 6), -1), ((4096, 4), -1),
    ((8, 16, 5), -1), ((32, 4, 9, 9), 1), ((3, 4, 5, 5), 1), ((300, 2, 3, 3), 1), ((16, 5, 70), 1),
    ((9, 3, 4, 4, 4), 1), ((1, 4, 20, 20), 1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_a_reading_is_right_in_every_layout(shape: Any, dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 2 + 3).to(dtype)
    kind = IMAGE if dim == 1 else ROWS
    forms = [x]
    if x.dim() == 4:
        forms.append(x.contiguous(memory_format=torch.channels_last))
        forms.append(x.transpose(2, 3))
    mean, variance = naive(x, dim)
    for form in forms:
        for take in (read, lambda t, k: read(t, k, image=True), read_centred):
            got = take(form, kind)
            assert got.rows == x.numel() // len(mean)
            np.testing.assert_allclose(got.mean.double(), mean, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(got.variance.double(), variance, rtol=2e-5, atol=1e-5)
            if got.image is not None:
                want = form.double().mean(dim=0).flatten(1)
                np.testing.assert_allclose(
                    got.image.double(), want, rtol=2e-5, atol=2e-2 if dtype.itemsize == 2 else 1e-5
                )


def test_a_single_row_is_in_no_doubt_and_changes_no_reading_to_come() -> None:
    recorder = LeanRecorder(Settings())
    state = recorder._state(SiteInfo("x", "activation", "relu", "x", 3))
    slot, rows = recorder.slot(state, "z"), torch.tensor([[1e-3, 2.0, -3e3]])
    for step in range(6):
        x = rows if step < 4 else torch.randn(32, 3) * 1e6
        recorder.take(slot, x, ROWS)
        recorder.called(state, (step, 1))
        recorder.flush()
    moments = recorder.records(backward=False)["x"].streams["z"].moments
    assert moments.count.tolist() == [68] * 3
    assert not moments.below_resolution.any()
    assert not state.notes


@pytest.mark.parametrize("ratio", [1e1, 1e3, 1e5, 1e7])
@pytest.mark.parametrize(("shape", "dim"), [((128, 8), -1), ((4000, 8), -1), ((16, 8, 12, 12), 1)])
def test_a_large_mean_is_right_or_flagged(ratio: float, shape: Any, dim: int) -> None:
    torch.manual_seed(0)
    recorder = LeanRecorder(Settings())
    state = recorder._state(SiteInfo("x", "activation", "relu", "x", shape[dim]))
    slot = recorder.slot(state, "z")
    kind = IMAGE if dim == 1 else ROWS
    for step in range(3):
        x = 1.0 + torch.randn(shape) / ratio
        recorder.take(slot, x, kind)
        recorder.tell(state, "calls")
        recorder.flush()
        moments = recorder.records()["x"].streams["z"].moments
        recorder.restart()
        _, exact = naive(x, dim)
        off = np.abs(moments.variance.numpy() / exact - 1) > 0.05
        flagged = moments.below_resolution.numpy()
        assert flagged[off].all()
        if step and ratio <= 1e5:
            assert not flagged.any()
            assert not off.any()


@pytest.mark.parametrize("size", [1e-12, 1e-18, 1e-21, 1e-30, 1e-36, 1e-41])
def test_small_gradients_are_right_or_flagged(size: float) -> None:
    torch.manual_seed(0)
    recorder = LeanRecorder(Settings())
    state = recorder._state(SiteInfo("x", "activation", "relu", "x", 6))
    slot = recorder.slot(state, "grad_z")
    for step in range(3):
        x = (torch.randn(64, 6).double() * size).float()
        recorder.take(slot, x, ROWS)
        recorder.tell(state, "calls")
        recorder.flush()
        moments = recorder.records()["x"].streams["grad_z"].moments
        recorder.restart()
        mean, exact = naive(x, -1)
        off = np.abs(moments.variance.numpy() - exact) > 0.01 * exact
        flagged = moments.below_resolution.numpy()
        assert flagged[off].all()
        if step == 2:
            assert not off.any()
            np.testing.assert_allclose(moments.mean, mean, rtol=1e-3, atol=1e-4 * size)
            assert flagged.any() == (size < 1e-37)


def test_zeros_are_not_flagged_and_constants_are() -> None:
    recorder = LeanRecorder(Settings())
    state = recorder._state(SiteInfo("x", "activation", "relu", "x", 2))
    slot = recorder.slot(state, "z")
    recorder.take(slot, torch.tensor([[0.0, 1.0]] * 4), ROWS)
    recorder.tell(state, "calls")
    recorder.flush()
    moments = recorder.records()["x"].streams["z"].moments
    assert moments.variance.tolist() == [0.0, 0.0]
    assert moments.below_resolution.tolist() == [False, True]


def test_values_that_are_not_finite_leave_the_others_alone(reader: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Sigmoid())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))  # type: ignore[union-attr, operator]
    probe = ss.watch(model, every=1)
    batches = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + k for k in range(3)]
    batches[1][0, 1] = torch.inf
    with np.errstate(invalid="ignore"):  # Triton's interpreter computes with numpy
        for x in batches:
            model(x)
            probe.step()
        got = probe.snapshot()
    stream = got.records["0"].streams["z"]
    probe.detach()
    # An infinite input times a weight of 0 is NaN: one row of each neuron is left out, or, by
    # torch's kernels, the whole second batch.
    rows = [1.0, 3.0, 3.0, 5.0] if reader == "torch" else [1.0, 3.0, 4.0, 3.0, 5.0]
    assert stream.moments.count.tolist() == [len(rows)] * 2
    assert stream.moments.mean[0] == pytest.approx(np.mean(rows))
    assert stream.counts is not None
    assert int(stream.counts.nonfinite.sum()) > 0
    assert torch.isfinite(stream.moments.mean).all()
    assert "non-finite" in "".join(got.records["0"].notes)


def test_the_accuracy_gate_of_the_deep_sigmoid_net() -> None:
    """50 layers at torch's default initialisation: right, or flagged; never wrong."""
    torch.manual_seed(0)
    layers = [m for _ in range(50) for m in (nn.Linear(32, 32), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(32, 4))
    x, y = torch.rand(64, 32), torch.arange(64) % 4
    exact = ss.analyze(model, [(x, y)], F.cross_entropy, dtype=torch.float64).neurons
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with ss.watch(model, optimizer, every=1, window=1) as probe:
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    for window in probe.trace:
        got = window.snapshot.neurons
        flagged = got.z_below_resolution.to_numpy(dtype=bool)
        off = np.abs(got.z_var - exact.z_var) > 0.05 * exact.z_var
        assert off.any()
        assert flagged[off.to_numpy()].all()
        assert not flagged[(exact.z_var > 1e-11).to_numpy()].any()
    records = probe.trace.last.records
    for name, record in records.items():
        stream = record.streams["grad_z"].moments
        want = exact[exact.site == name].grad_z_var.to_numpy()
        wrong = np.abs(stream.variance.numpy() - want) > 0.05 * want
        tiny = np.sqrt(want) < 1e-36  # the numbers themselves have lost their digits
        assert (stream.below_resolution.numpy() | tiny)[wrong].all()
        if want.max() > 1e-60 and want.min() > 1e-66:
            assert not wrong.any()


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Linear(16, 3)
    )


@pytest.mark.parametrize(
    ("make", "shapes"),
    [(dense, [(33, 8)] * 5), (dense, [(64, 8)] * 3 + [(5, 8)] * 2), (dense, [(4, 50, 8)] * 4),
     (conv, [(12, 3, 8, 8)] * 4), (conv, [(12, 3, 8, 8), (2, 3, 8, 8), (5, 3, 8, 8)])],
)  # fmt: skip
def test_many_steps_agree_with_storing_everything(
    make: Callable[[], nn.Module], shapes: Any
) -> None:
    torch.manual_seed(0)
    model = make()
    batches = [torch.randn(shape) for shape in shapes]
    loss: Callable[[Any, Any], Tensor] = lambda out, _: out.square().sum()  # noqa: E731
    steps = [ss.analyze(model, [(x, torch.zeros(1))], loss) for x in batches]
    want = reduce(lambda one, other: one.join(other), steps)  # of many steps: the averages
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with ss.watch(model, optimizer, every=1, window=len(batches)) as probe:
        for x in batches:
            loss(model(x), None).backward()
            optimizer.step()
    got = probe.trace.last
    for name, record in want.records.items():
        for stream in ("a", "z", "grad_z", "grad_a"):
            if stream not in record.streams:
                assert stream not in got.records[name].streams
                continue
            one, other = record.streams[stream].moments, got.records[name].streams[stream].moments
            assert torch.equal(one.count, other.count)
            scale = float(one.std.mean()) + 1e-30
            np.testing.assert_allclose(other.mean, one.mean, rtol=1e-4, atol=1e-5 * scale)
            np.testing.assert_allclose(
                other.variance, one.variance, rtol=1e-4, atol=1e-7 * scale**2
            )
        first = steps[0].records[name].weights  # weights are read with the first step
        if first is not None:
            mine = got.records[name].weights
            assert mine is not None
            np.testing.assert_allclose(mine.mu, first.mu, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(mine.shift, first.shift, rtol=1e-4, atol=1e-5)
