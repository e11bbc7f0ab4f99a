"""The end of a probe: dropped, detached, and used after that."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo.eval_frame as frames
from torch import nn

import shiftscope as ss
from shiftscope.integrations.watching import Watching


@contextmanager
def without_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def made() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: Any, steps: int = 2, closure: bool = False) -> None:
    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(4, 6)).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        if closure:
            optimizer.step(loss)
        else:
            loss()
            optimizer.step()


def left(model: nn.Module, optimizer: Any) -> list[Any]:
    hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    hooks += [*optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks]
    stance = frames._stance.stance
    return hooks + [stance] * (stance != "default")


@pytest.mark.parametrize("options", [{"every": 1}, {"every": 2}, {}], ids=str)
@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_probe_with_an_optimizer_that_is_dropped_goes_at_once(
    options: dict[str, Any], closure: bool, steps: int
) -> None:
    model, optimizer = made()
    with without_collector():
        probe = ss.watch(model, optimizer, **options)
        train(model, optimizer, steps, closure)
        gone = [weakref.ref(probe), weakref.ref(probe._recording)]
        del probe
        assert [reference() for reference in gone] == [None, None]
        assert left(model, optimizer) == []
    train(model, optimizer)


def test_a_probe_that_nobody_took_records_nothing() -> None:
    model, optimizer = made()
    ss.watch(model, optimizer, every=1)
    assert left(model, optimizer) == []


def test_a_probe_goes_after_a_step_that_raised_as_well() -> None:
    model, optimizer = made()
    probe = ss.watch(model, optimizer, every=1)

    def raises() -> float:
        model(torch.randn(4, 6))
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        optimizer.step(raises)
    del probe
    assert left(model, optimizer) == []


def test_a_with_block_and_a_callback_hold_their_probe() -> None:
    model, optimizer = made()
    callback = Watching(every=1, window=1)
    with ss.watch(model, optimizer, every=1):
        callback._begin(model, optimizer, None)
        gc.collect()
        train(model, optimizer)
        assert len(optimizer._optimizer_step_pre_hooks) == 2
    assert len(callback.trace) == 2
    callback.close()
    assert left(model, optimizer) == []


def test_an_optimizer_is_saved_without_the_hooks() -> None:
    model, optimizer = made()
    with ss.watch(model, optimizer, every=1):
        train(model, optimizer)
        twin = pickle.loads(pickle.dumps(optimizer))
        assert list(optimizer.state_dict()) == ["state", "param_groups"]
    assert not twin._optimizer_step_pre_hooks


def test_a_detached_probe_refuses_to_record_and_lets_a_loop_go_on() -> None:
    model, _ = made()
    probe = ss.watch(model, every=1)
    model(torch.randn(4, 6)).sum().backward()
    probe.step()
    probe.detach()
    probe.step()
    assert probe.overhead["steps_seen"] == 1
    with pytest.raises(ss.UsageError, match="detached") as caught, probe.record():
        pass
    assert "before probe.detach()" in caught.value.remedy
    probe.detach()
    assert len(probe.trace) == 1
