"""Calls that compiled code records: the numbers are those of Python, and nothing else differs."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import shiftscope as ss
from shiftscope.capture import calls, hooks, probe
from shiftscope.capture.mode import Mode, PlainMode, Run

pytestmark = pytest.mark.skipif(calls.CompiledMode is None, reason="not built: no compiler")


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on Python does it all."""

    def switch() -> None:
        monkeypatch.setattr(probe, "Mode", PlainMode)
        monkeypatch.setattr(hooks, "entered", lambda *_: False)
        monkeypatch.setattr(hooks, "left", lambda *_: False)

    return switch


@pytest.fixture
def by_python(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The functions whose calls come to Python, as their plan is not the plain one."""
    seen: list[Any] = []
    original = PlainMode.handle

    def handle(self: Any, handler: Any, func: Any, args: Any, kwargs: Any) -> Any:
        seen.append(func)
        return original(self, handler, func, args, kwargs)

    monkeypatch.setattr(PlainMode, "handle", handle)
    return seen


class Block(nn.Module):
    """Functions, in-place functions, keywords, tied weights, a module used twice, no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(6, 8), nn.Linear(8, 6, bias=False), nn.GELU()
        self.norm, self.drop, self.twice = nn.LayerNorm(6), nn.Dropout(0.0), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(self.act(self.up(self.norm(x))))
        h = torch.tanh(self.twice(h)) + F.relu(self.twice(self.drop(x)), inplace=True)
        h = F.leaky_relu_(F.linear(h, weight=self.down.weight.t()), 0.2)
        with torch.no_grad():
            gate = torch.sigmoid(self.up(x)).mean(dim=-1, keepdim=True)
        return x + F.linear(F.softplus(h, beta=2.0), self.up.weight.t()) * gate


class Images(nn.Module):
    """Convolutions of both directions, over two forms of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            *(nn.Conv2d(4, 4, 3, groups=2, padding=1, padding_mode="reflect"), nn.SiLU()),
            *(nn.ConvTranspose2d(4, 2, 2), nn.Softmax(dim=1), nn.Flatten(), nn.LazyLinear(5)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class Recomputed(nn.Module):
    """A part that a checkpoint runs again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.cell = nn.Linear(6, 6), Block(), nn.GRUCell(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.inner, self.first(x), use_reentrant=False)
        for _ in range(2):
            h = self.cell(x, h)
        return h  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "blocks": (lambda: nn.Sequential(Block(), Block()), lambda: torch.randn(5, 6)),
    "images": (Images, lambda: torch.randn(4, 3, 6, 6)),
    "channels last": (
        Images, lambda: torch.randn(4, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    ),
    "recomputed": (Recomputed, lambda: torch.randn(5, 6)),
    "attention": (
        lambda: nn.TransformerEncoderLayer(6, 2, 12, 0.0, batch_first=True),
        lambda: torch.randn(3, 4, 6),
    ),
}  # fmt: skip


def numbers(name: str) -> tuple[list[Any], dict[str, Any]]:
    """What a watched run of a few steps gives, and the weights at its end."""
    torch.manual_seed(0)
    make, draw = MODELS[name]
    model = make()
    model(draw())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1, window=2) as watched:
        for step in range(6):
            for _ in range(1 + step % 2):  # micro-batches
                model(draw()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                model.eval()(draw())
            model.train()
    told: list[Any] = []
    for entry in watched.trace:
        for site, record in entry.snapshot.records.items():
            told.append((site, record.calls, record.samples, record.notes, record.paired))
            for stream, tallies in record.streams.items():
                moments = tallies.moments
                told += [stream, moments.count.numpy(), moments.mean.numpy(), moments.m2.numpy()]
    return told, model.state_dict()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_numbers_are_those_of_python(name: str, plainly: Callable[[], None]) -> None:
    got, weights = numbers(name)
    plainly()
    want, same = numbers(name)
    assert len(got) == len(want) > 20
    for mine, theirs in zip(got, want, strict=True):
        if isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, theirs)
        else:
            assert mine == theirs
    assert all(torch.equal(weights[key], same[key]) for key in same)


def test_plain_calls_never_come_to_python(by_python: list[Any]) -> None:
    layers = [nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(inplace=True)]
    model = nn.Sequential(*layers, nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    came = []
    with ss.watch(model, optimizer, every=1, window=100):
        for _ in range(4):
            by_python.clear()
            model(torch.randn(3, 6)).square().mean().backward()
            optimizer.step()
            came.append(len(by_python))
    # The first call is parsed, the second step reads weights once more where it is the first of a
    # window; from then on nothing is left for Python.
    assert came[0] == 5
    assert came[2:] == [0, 0]


def test_another_call_than_the_one_that_is_known_comes_to_python(by_python: list[Any]) -> None:
    layer = nn.Linear(6, 6)
    other = nn.Parameter(torch.randn(6, 6))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.how = layer, "same"

        def forward(self, x: Tensor) -> Tensor:
            if self.how == "weight":
                return F.linear(x, other)
            if self.how == "function":
                return F.gelu(self.layer(x))
            if self.how == "dtype":
                return torch.tanh(self.layer(x).double())
            if self.how == "dims":
                return torch.tanh(self.layer(x.unsqueeze(0)))
            return torch.tanh(self.layer(x))

    net = Net()
    with ss.watch(net, every=1) as watched:
        for how in ("same", "same", "same", "weight", "same", "function", "same", "dtype", "dims"):
            net.how = how
            by_python.clear()
            net(torch.randn(3, 6)).square().mean().backward()
            watched.step()
            if how != "same":
                assert by_python, how
    told = watched.trace[-1].snapshot.records
    assert told["layer"].calls == 8
    assert {":linear", ":tanh", ":gelu"} <= set(told)


def test_an_error_in_the_function_leaves_nothing_behind() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.act, self.width = nn.Linear(4, 4), nn.ReLU(), 4

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.layer(x[:, : self.width]))  # type: ignore[no-any-return]

    net = Net()
    with ss.watch(net, every=1) as watched:
        for step in range(5):
            net.width = 3 if step == 3 else 4
            if step == 3:
                with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                    net(torch.randn(2, 4))
                assert torch._C._len_torch_function_stack() == 0
                continue
            net(torch.randn(2, 4)).sum().backward()
            watched.step()
    assert watched.trace[-1].snapshot.records["layer"].calls == 4


def test_a_call_that_cannot_be_compared_ends_its_module() -> None:
    class Refusing(TorchFunctionMode):
        on = False

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if self.on and func == Tensor.dtype.__get__:  # type: ignore[attr-defined]
                self.on = False
                raise ValueError("not now")
            return func(*args, **(kwargs or {}))

    refusing = Refusing()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with contextlib.suppress(ValueError):
                self.layer(x)
            return torch.tanh(self.layer(x))

    net = Net()
    with refusing, ss.watch(net, every=1, window=100) as watched:
        for step in range(5):
            refusing.on = step == 3
            net(torch.randn(2, 4)).sum().backward()
            watched.step()
            assert not refusing.on
    records = watched.trace[-1].snapshot.records
    assert set(records) == {"layer", ":tanh"}
    assert (records["layer"].calls, records[":tanh"].calls) == (9, 5)


def test_a_convolution_that_fails_to_pad_ends() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv1d(1, 1, 3, padding=2, padding_mode="reflect")

        def forward(self, x: Tensor) -> Tensor:
            with contextlib.suppress(RuntimeError):
                self.layer(x[..., :2])
            return torch.tanh(self.layer(x))

    net = Net()
    with ss.watch(net, every=1, window=100) as watched:
        for _ in range(4):
            net(torch.randn(2, 1, 5)).sum().backward()
            watched.step()
    assert set(watched.trace[-1].snapshot.records) == {"layer", ":tanh"}


def test_a_hook_holds_neither_recorder_nor_graph() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    watched = ss.watch(model, every=1)
    for _ in range(3):
        model(torch.randn(2, 4)).sum().backward()
        watched.step()
    out = model(torch.randn(2, 4))
    graph, recorder = weakref.ref(out), weakref.ref(next(iter(watched._phases.recorders.values())))
    watched.detach()
    del watched
    gc.collect()
    assert recorder() is None
    out.sum().backward()  # its hooks fire, and find nobody
    assert model[0].weight.grad is not None
    del out
    assert graph() is None


def test_thousands_of_steps_leave_no_object_behind() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def steps(number: int) -> None:
        for _ in range(number):
            optimizer.zero_grad()
            model(torch.randn(2, 4)).sum().backward()
            optimizer.step()

    with ss.watch(model, optimizer, every=1, window=10**6) as watched:
        steps(20)
        (recorder,) = watched._phases.recorders.values()
        plan = recorder.plans["0"][0]
        held: list[Any] = [
            recorder,
            recorder.books,
            plan,
            plan.state,
            None,
            watched._recording.attachment,
        ]
        gc.collect()
        before, objects = list(map(sys.getrefcount, held)), len(gc.get_objects())
        steps(2000)
        gc.collect()
        after, more = list(map(sys.getrefcount, held)), len(gc.get_objects())
    assert all(abs(one - other) < 50 for one, other in zip(before, after, strict=True))
    assert more - objects < 100


def test_a_mode_refuses_what_torch_never_gives() -> None:
    mode = Mode({}, Run())
    for wrong in ((), (1,), (torch.add, (), [1]), (torch.add, (), (), 3)):
        with pytest.raises(TypeError):
            mode.__torch_function__(*wrong)
    with pytest.raises(TypeError):
        Mode([], Run())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Mode({}, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="never made"):
        Mode.__new__(Mode).__torch_function__(torch.add, (), (1, 2))
    assert mode.__torch_function__(torch.add, (), (1, 2)) == 3
    mode.run.mode = mode  # a cycle, which the collector finds
    gone = weakref.ref(mode)
    del mode
    gc.collect()
    assert gone() is None


def test_a_class_without_the_slots_is_refused() -> None:
    class Odd:
        __slots__ = ("path",)
        module = 3

    with pytest.raises(TypeError, match="is no slot"):
        calls.known_as("frame")(Odd)
    with pytest.raises(ValueError, match="no class is known"):
        calls.known_as("nobody")(Odd)


SCRIPT = """
import sys
sys.modules["shiftscope.capture._calls"] = None
import torch, shiftscope as ss
from shiftscope.capture import calls, mode
assert calls.CompiledMode is None and mode.Mode is mode.PlainMode
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
with ss.watch(model, every=1) as probe:
    for _ in range(3):
        model(torch.randn(8, 4)).sum().backward()
        probe.step()
print(sorted(probe.trace[-1].snapshot.records))
"""


def test_without_the_compiled_part_python_does_it_all() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['0', '1']"
