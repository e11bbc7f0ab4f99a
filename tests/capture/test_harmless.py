"""Measuring leaves the model, the process and its random numbers as they were."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import shiftscope as ss
from shiftscope.capture.probe import Attachment
from shiftscope.capture.recorder import Recorder, Settings


class Net(nn.Module):
    """Batch norm, dropout, an in-place residual, a shared activation, a spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(6), nn.Dropout(0.3)
        self.act = nn.ReLU(inplace=True)
        self.head = parametrizations.spectral_norm(nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm(self.conv(x)))
        h = self.drop(h) * 1.0
        h += torch.sigmoid(h)
        return self.head(self.act(h).mean(dim=(2, 3)))


class Faulty(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.act(self.conv(x))
        raise ValueError("a fault of the model's own")


def loss(out: Tensor, y: Any) -> Tensor:
    return out.square().mean()


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything a user could see of a model, and the random generators."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "identities": {k: id(v) for k, v in (*model.named_parameters(), *model.named_buffers())},
        "grads": {k: None if p.grad is None else p.grad.clone() for k, p in named(model)},
        "requires": {k: p.requires_grad for k, p in named(model)},
        "modes": {k: m.training for k, m in model.named_modules()},
        "hooks": {k: {h: len(getattr(m, h)) for h in hooks} for k, m in model.named_modules()},
        "attributes": {k: sorted(vars(m)) for k, m in model.named_modules()},
        "repr": repr(model),
        "rng": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
        "modes on the stack": torch._C._len_torch_function_stack(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
    }


def named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    yield from model.named_parameters()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return bool(one == other)


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in one if not same(one[key], other[key])]


@pytest.mark.parametrize("make", [Net, Faulty])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_loss", [True, False])
def test_the_model_leaves_as_it_came(
    make: Callable[[], nn.Module], training: bool, with_loss: bool
) -> None:
    torch.manual_seed(0)
    model = make().train(training)
    model.get_submodule("norm").eval()
    x = torch.rand(5, 3, 6, 6)
    for p in list(model.parameters())[:2]:
        p.grad = torch.ones_like(p)
    before = state_of(model)
    data = [(x, torch.zeros(5)), (x[:3], torch.zeros(3))]
    if make is Faulty:
        with pytest.raises(ss.MeasureError, match="a fault of the model's own"):
            ss.analyze(model, data, loss if with_loss else None)
    else:
        ss.analyze(model, data, loss if with_loss else None)
    assert differing(before, state_of(model)) == []


def test_an_interrupt_leaves_no_trace() -> None:
    class Interrupted(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.conv(x)
            raise KeyboardInterrupt

    model, x = Interrupted(), torch.rand(2, 3, 4, 4)
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        ss.analyze(model, [x])
    assert differing(before, state_of(model)) == []


def train(model: nn.Module, watched: Callable[[int, nn.Module], Any]) -> dict[str, Any]:
    torch.manual_seed(7)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(8):
        x = torch.rand(4, 3, 6, 6)
        with watched(step, model):
            out = loss(model(x), None)
            optimizer.zero_grad()
            out.backward()
        optimizer.step()
        losses.append(out.detach())
    states = {
        f"{k}.{n}": v for k, s in optimizer.state_dict()["state"].items() for n, v in s.items()
    }
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    return {"losses": torch.stack(losses), "weights": weights, "states": states} | {
        "rng": torch.get_rng_state()
    }


class _Unwatched:
    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_training_while_attached_is_equal_bit_for_bit() -> None:
    torch.manual_seed(1)
    model = Net()
    twin = copy.deepcopy(model)
    recorder = Recorder(Settings())

    def watched(step: int, net: nn.Module) -> Any:
        return Attachment(net, recorder) if step % 3 == 0 else _Unwatched()

    bare, seen = train(model, _Unwatched), train(twin, watched)
    assert differing(bare, seen) == []
    assert recorder.records()["conv"].calls == 3


def test_copies_and_pickles_of_an_attached_model_are_inert() -> None:
    model, recorder = Net(), Recorder(Settings())
    x = torch.rand(2, 3, 6, 6)
    with Attachment(model.eval(), recorder):
        # A parametrised module cannot be pickled, with or without hooks: pickle a plain part.
        twin = copy.deepcopy(model)
        plain = pickle.loads(pickle.dumps(model.conv))
        buffer = io.BytesIO()
        torch.save(model.norm, buffer)
        keys = list(model.state_dict())
        twin(x)
        plain(x)
        assert recorder.records() == {}
        model(x)
    assert keys == list(model.state_dict())
    calls = recorder.records()["conv"].calls
    twin(x)
    assert recorder.records()["conv"].calls == calls == 1


def test_nothing_is_kept_alive() -> None:
    model, recorder = Net(), Recorder(Settings(rows=4))
    x = torch.rand(2, 3, 6, 6, requires_grad=True)
    gc.disable()
    try:
        with Attachment(model, recorder):
            inner: list[weakref.ref[Tensor]] = []
            handle = model.norm.register_forward_hook(lambda *a: inner.append(weakref.ref(a[2])))
            out = model(x)
            inner.append(weakref.ref(out))
            assert inner[-1]() is not None
            loss(out, None).backward()
            del out
            handle.remove()
        assert [reference() for reference in inner] == [None, None]
    finally:
        gc.enable()


def test_a_late_backward_after_detach_is_harmless() -> None:
    model, recorder = Net(), Recorder(Settings())
    with Attachment(model, recorder):
        out = model(torch.rand(2, 3, 6, 6))
    del recorder
    loss(out, None).backward()


def test_user_hooks_stay_and_still_run() -> None:
    model, seen = Net(), []
    model.conv.register_forward_hook(lambda *_: seen.append("user"))
    ss.analyze(model, [torch.rand(2, 3, 6, 6)])
    assert seen
    assert len(model.conv._forward_hooks) == 1


class Keeping(nn.Module):
    """Keeps what it computes as plain attributes, one of which was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.sums, self.output = torch.zeros(4), None

    def forward(self, x: Tensor) -> Tensor:
        self.sums = self.layer.weight.sum(1)
        self.output = self.head(self.layer(x).relu())
        return self.output


@pytest.mark.parametrize("with_loss", [True, False])
def test_no_attribute_keeps_the_graph_of_the_measurement(with_loss: bool) -> None:
    model = Keeping()
    sums = model.sums
    ss.analyze(model, [(torch.randn(5, 3), torch.zeros(5))], loss if with_loss else None)
    assert model.sums is sums
    assert isinstance(model.output, Tensor)
    assert model.output.grad_fn is None
    copy.deepcopy(model)
