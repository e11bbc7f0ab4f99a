"""Watching on a GPU: the CPU's numbers, training unchanged, and nothing waits for the device."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial, reduce
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from training_cases import CASES, MODELS, mlp, run, same

import shiftscope as ss
from shiftscope.capture import device_reader, lean
from shiftscope.capture.readings import IMAGE, ROWS
from shiftscope.capture.recorder import Settings
from shiftscope.record import SiteInfo
from shiftscope.tally import launches, native

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:.*TensorFloat32 tensor cores"),  # from inductor
    pytest.mark.filterwarnings("ignore:.*Profiler clears events"),
]

COLUMNS = ["count", "z_mean", "z_var", "a_mean", "a_var", "grad_z_mean", "grad_z_var", "grad_a_var"]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Full float32 products, and convolutions that give the same bits each time."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the device raises."""
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=["triton", "torch"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of reading on a GPU."""
    chosen: str = request.param
    if chosen == "torch":
        monkeypatch.setattr(device_reader, "usable", lambda device: False)
    return chosen


@pytest.mark.parametrize(("name", "how"), CASES)
def test_training_is_equal_bit_for_bit(name: str, how: str) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().cuda()
    again, *twins = [copy.deepcopy(model) for _ in range(3)]
    bare = run(model, shape, how, None, "cuda")
    assert same(bare, run(again, shape, how, None, "cuda"))  # else the next line says nothing
    for twin, every in zip(twins, (1, 3), strict=True):
        assert same(bare, run(twin, shape, how, every, "cuda"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_model_trains_on(backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = mlp(32).cuda()
    twin = copy.deepcopy(model)
    bare = run(torch.compile(model, backend=backend), (16, 6), "adam", None, "cuda")
    watched = run(torch.compile(twin, backend=backend), (16, 6), "adam", 3, "cuda")
    if backend == "aot_eager":
        assert same(bare, watched)
    for one, other in zip(bare["weights"], watched["weights"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


SHAPES = [
    ((1, 7), ROWS), ((50, 1), ROWS), ((128, 256), ROWS), ((1000, 33), ROWS), ((5, 70, 48), ROWS),
    ((70000, 3), ROWS), ((4, 16, 8, 16), IMAGE),
    ((32, 64, 32, 32), IMAGE), ((3, 5, 7, 7), IMAGE), ((300, 2, 3, 3), IMAGE), ((16, 5, 70), IMAGE),
    ((2, 3, 4, 5, 6), IMAGE), ((4, 600, 1, 1), IMAGE),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "kind"), SHAPES)
def test_readings_are_those_of_float64(
    shape: tuple[int, ...], kind: int, dtype: torch.dtype, reader: str
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 2 + 3).to(dtype)
    exact = x.double().movedim(1 if kind == IMAGE else -1, -1).flatten(0, -2)
    forms = [x.cuda()]
    if x.dim() == 4:
        forms.append(x.cuda().contiguous(memory_format=torch.channels_last))
    forms.append(x.cuda().unsqueeze(-1).expand(*shape, 2)[..., 0])
    width = exact.shape[1]
    for image in (False, True):
        for form in forms:
            recorder = lean.LeanRecorder(Settings())
            state = recorder._state(SiteInfo("x", "activation", "relu", "x", width))
            slot = recorder.slot(state, "z")
            recorder._imaged[slot] = image and kind == IMAGE
            recorder.take(slot, form, kind)
            found = recorder._pending[-1][1]
            recorder.tell(state, "calls")
            recorder.flush()
            got = recorder.records()["x"].streams["z"].moments
            assert got.count.tolist() == [len(exact)] * width
            tight = (1e-12 if dtype is torch.float64 else 2e-6) if reader == "triton" else 2e-5
            torch.testing.assert_close(got.mean, exact.mean(0), rtol=tight, atol=tight)
            variance = exact.var(0, unbiased=False)
            torch.testing.assert_close(got.variance, variance, rtol=tight, atol=tight)
            if recorder._imaged[slot] and reader == "triton":
                want = x.double().mean(0).flatten(1)
                means = found.image.cpu().reshape(want.shape)
                torch.testing.assert_close(means, want, rtol=tight, atol=tight)


@pytest.mark.skipif(not native.built(), reason="the compiled part was not built")
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_from_the_second_step_on_kernels_are_launched_by_the_driver(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = make().cuda(), torch.randn(shape, device="cuda")
    through_triton: list[int] = []
    run = launches.Launch._run
    monkeypatch.setattr(
        launches.Launch, "_run", lambda self, *args: (through_triton.append(1), run(self, *args))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    calls = []
    with ss.watch(model, optimizer, every=1, window=1) as probe:
        for _ in range(4):
            torch.manual_seed(1)  # for dropout
            _step(model, optimizer, x)
            calls.append(len(through_triton))
    frames = [window.snapshot.neurons for window in probe.trace]
    assert calls[0] > 0
    assert calls[2:] == [calls[1]] * 2  # what asks for a mean image does so from the second on
    for later in frames[1:]:
        for column in COLUMNS:
            one, other = frames[0][column].to_numpy(), later[column].to_numpy()
            np.testing.assert_allclose(other, one, rtol=1e-9, atol=0.0, err_msg=column)


@pytest.mark.parametrize("size", [1e-12, 1e-21, 1e-30, 1e-38, 1e-41, 1e-44])
def test_tiny_gradients_keep_their_variance(size: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(64, 40).double() * size).float()
    recorder = lean.LeanRecorder(Settings())
    state = recorder._state(SiteInfo("x", "activation", "relu", "x", 40))
    recorder.take(recorder.slot(state, "grad_z"), x.cuda(), ROWS)
    recorder.tell(state, "calls")
    recorder.flush()
    got = recorder.records()["x"].streams["grad_z"].moments
    torch.testing.assert_close(got.variance, x.double().var(0, unbiased=False), rtol=1e-5, atol=0.0)


def test_the_accuracy_gate_of_the_deep_sigmoid_net(reader: str) -> None:
    """50 layers at torch's default initialisation: right, or flagged; never wrong."""
    torch.manual_seed(0)
    layers = [m for _ in range(50) for m in (nn.Linear(64, 64), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(64, 4)).cuda()
    x, y = torch.rand(128, 64).cuda(), torch.arange(128).cuda() % 4
    exact = ss.analyze(model, [(x, y)], F.cross_entropy, dtype=torch.float64).neurons
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with ss.watch(model, optimizer, every=1, window=1) as probe:
        for _ in range(8):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            torch.cuda.synchronize()  # what torch's kernels doubt is known a step later
    got = probe.trace.last.neurons
    flagged = got.z_below_resolution.to_numpy(dtype=bool)
    off = (np.abs(got.z_var - exact.z_var) > 0.05 * exact.z_var).to_numpy()
    assert off.any()
    assert flagged[off].all()
    assert not flagged[(exact.z_var > 1e-11).to_numpy()].any()


@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_are_those_of_analyze(name: str, reader: str) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().cuda()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    batches = [torch.randn(shape, device="cuda") for _ in range(4)]

    def loss(out: Tensor, _: Any) -> Tensor:
        # A layer norm at the end makes the plain sum of squares a constant.
        return (out * torch.linspace(0.5, 1.5, out.shape[-1], device=out.device)).square().sum()

    steps = [ss.analyze(model, [(x, torch.zeros(1))], loss, dtype=torch.float64) for x in batches]
    want = reduce(ss.Snapshot.join, steps).neurons  # a window averages its steps
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with ss.watch(model, optimizer, every=1, window=4) as probe:
        for x in batches:
            optimizer.zero_grad()
            loss(model(x), None).backward()
            optimizer.step()
    got = probe.trace.last
    both = want.merge(got.neurons, on=["site", "neuron"], suffixes=("", "_got"))
    assert len(both) == len(got.neurons)
    missing = {site.partition(":")[0] for site in set(want.site) - set(both.site)}
    assert missing <= {path for path, _ in got.gaps}  # inside a fused kernel: said so
    for column in COLUMNS:
        one, other = both[column].to_numpy(), both[f"{column}_got"].to_numpy()
        size = both[column.replace("mean", "var")].to_numpy() ** (0.5 if "mean" in column else 1)
        atol = 1e-4 * np.nanmax(size)  # training runs in float32, the reference in float64
        np.testing.assert_allclose(other, one, rtol=2e-3, atol=atol, err_msg=column)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_a_recorded_step_neither_waits_nor_copies_to_the_host() -> None:
    torch.manual_seed(0)
    for name in ("mlp", "conv", "transformer"):
        make, shape = MODELS[name]
        model = make().cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        x = torch.randn(shape, device="cuda")

        step = partial(_step, model, optimizer, x)

        with ss.watch(model, optimizer, every=1, window=100) as probe:
            for _ in range(3):
                step()
            torch.cuda.synchronize()
            with no_waiting():
                step()
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
                step()
            names = [event.key for event in seen.key_averages()]
            assert any("read_columns" in key or "read_images" in key for key in names), names
            assert not [key for key in names if "DtoH" in key or key == "aten::item"]
            assert probe.overhead["steps_recorded"] == 5
        torch.cuda.synchronize()


def test_the_first_step_waits_for_nothing_either() -> None:
    model = mlp().cuda()
    x = torch.randn(7, 6, device="cuda")
    for attempt in (nullcontext, no_waiting):  # the first one compiles
        with ss.watch(model, every=1, window=100) as probe, attempt():
            for _ in range(2):
                model(x).square().mean().backward()
                probe.step()


def test_the_end_of_a_window_copies_to_the_host_as_often_however_many_sites() -> None:
    copies = []
    for sites in (2, 12):
        layers = [m for _ in range(sites) for m in (nn.Linear(6, 6), nn.Sigmoid())]
        model = nn.Sequential(*layers).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        step = partial(_step, model, optimizer, torch.randn(7, 6, device="cuda"))
        with ss.watch(model, optimizer, every=1, window=2) as probe:
            for _ in range(3):
                step()
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
                step()
                torch.cuda.synchronize()
            assert len(probe.trace) == 2
        copies.append(sum(e.count for e in seen.key_averages() if "DtoH" in e.key))
    assert copies[0] == copies[1]
    assert 0 < copies[0] <= 6


def test_true_gradients_and_overflows_under_a_scaler() -> None:
    torch.manual_seed(0)
    model = mlp(64).cuda()
    twin = copy.deepcopy(model)
    batches = [torch.randn(32, 6, device="cuda") for _ in range(4)]
    results = []
    for net, scaled in ((model, True), (twin, False)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, enabled=scaled)
        with ss.watch(net, optimizer, every=1, scaler=scaler, window=10) as probe:
            for k, batch in enumerate(batches):
                if k == 1 and not scaled:
                    continue
                optimizer.zero_grad()
                with torch.autocast("cuda", torch.float16):
                    loss = net(batch).float().square().mean()
                scaler.scale(loss * (3e38 if k == 1 else 1.0)).backward()
                scaler.step(optimizer)
                scaler.update()
            results.append((probe.snapshot(), probe.overflows))
    assert [overflows for _, overflows in results] == [1, 0]
    one, other = (snapshot.neurons for snapshot, _ in results)
    assert one["grad_z_count"].iloc[0] == 96
    for column in ("grad_z_mean", "grad_z_var", "grad_a_var"):
        a, b = one[column].to_numpy(), other[column].to_numpy()
        # unscaled gradients of the twin lose digits of their own in half precision
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-2 * np.nanmax(np.abs(b)))


def test_a_captured_graph_is_told() -> None:
    model = mlp().cuda()
    x = torch.randn(7, 6, device="cuda")
    probe = ss.watch(model, every=1)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        model(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        model(x)
    graph.replay()
    model(x)
    probe.step()
    snapshot = probe.snapshot()
    probe.detach()
    assert any("CUDA graph" in reason for _, reason in snapshot.gaps)


def test_no_memory_is_kept() -> None:
    model = mlp(512).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(4096, 6, device="cuda")

    def steps(number: int) -> int:
        for _ in range(number):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        torch.cuda.synchronize()
        gc.collect()
        return torch.cuda.memory_allocated()

    bare = steps(3)
    with ss.watch(model, optimizer, every=1, window=50, rows=64):
        first = steps(60)
        # pages and totals: 24 bytes a part of a neuron; one activation alone has 8 MB
        assert first - bare < 8 * 2**20
        assert steps(200) <= first + 2**16


def test_a_side_stream() -> None:
    torch.manual_seed(0)
    model = mlp(64).cuda()
    x = torch.randn(512, 6, device="cuda")
    with torch.no_grad():
        z = model[0](x).double()
    stream = torch.cuda.Stream()
    with ss.watch(model, every=1) as probe:
        for _ in range(3):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                loss = model(x).square().mean()
                loss.backward()
            torch.cuda.current_stream().wait_stream(stream)
            probe.step()
        got = probe.snapshot().records["0"].streams["z"].moments
    torch.testing.assert_close(got.mean, z.mean(0).cpu(), rtol=1e-5, atol=1e-6)
    assert got.count.tolist() == [3 * 512] * 64
