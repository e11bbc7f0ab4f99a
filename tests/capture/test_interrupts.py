"""However a recorded step ends, the user's exception stays and nothing else does."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.eval_frame as frames
from torch import Tensor, nn
from torch.overrides import _pop_mode_temporarily

import shiftscope as ss
from shiftscope.capture import calls
from shiftscope.capture.lean import LeanRecorder

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)


class Net(nn.Module):
    """Raises what it is told to, in the midst of a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 8), nn.Linear(8, 5)
        self.error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if self.error is not None:
            raise self.error
        return self.second(x)


def trained(model: nn.Module, optimizer: Any, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 12)).square().mean().backward()
        optimizer.step()


def trained_by_closure(model: nn.Module, optimizer: Any, steps: int = 1) -> None:
    x = torch.randn(16, 12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def left(model: nn.Module, optimizer: Any) -> list[Any]:
    """What is still installed anywhere."""
    found: list[Any] = [
        (name, kind, dict(getattr(module, kind)))
        for name, module in model.named_modules()
        for kind in HOOKS
        if getattr(module, kind)
    ]
    found += optimizer._optimizer_step_pre_hooks.values()
    found += optimizer._optimizer_step_post_hooks.values()
    found += [f"{torch._C._len_torch_function_stack()} modes"] * (
        torch._C._len_torch_function_stack() > 0
    )
    return found + [frames._stance.stance] * (frames._stance.stance != "default")


def made() -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError])
def test_an_interrupt_in_a_forward_pass_leaves_nothing(
    kind: type[BaseException], steps: int
) -> None:
    model, optimizer = made()
    probe = ss.watch(model, optimizer, every=1)

    def interrupted() -> None:
        with probe:
            trained(model, optimizer, steps)
            model.error = kind("the user's")
            model(torch.randn(4, 12))

    with pytest.raises(kind) as caught:
        interrupted()
    assert caught.value is model.error
    assert left(model, optimizer) == []
    assert not probe.attached
    if steps:
        assert probe.snapshot().sites["count"].max() >= 16 * steps


def test_training_goes_on_after_an_interrupt_that_the_user_caught() -> None:
    model, optimizer = made()
    with ss.watch(model, optimizer, every=1) as probe:
        model.error = KeyboardInterrupt()
        with contextlib.suppress(KeyboardInterrupt):
            model(torch.randn(4, 12))
        optimizer.step()
        assert torch._C._len_torch_function_stack() == 0
        model.error = None
        trained(model, optimizer, 3)
    assert left(model, optimizer) == []
    sites = probe.snapshot().sites
    assert set(sites["count"]) == {48}  # without what the interrupted pass had recorded


def test_a_failure_at_the_end_does_not_replace_the_users_exception(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: Any, **_: Any) -> Any:
        raise RuntimeError("the books are lost")

    model, optimizer = made()

    def interrupted() -> None:
        with ss.watch(model, optimizer, every=1):
            trained(model, optimizer)
            monkeypatch.setattr(LeanRecorder, "records", broken)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    assert "the books are lost" in caught.value.__notes__[0]
    assert left(model, optimizer) == []
    probe = ss.watch(model, optimizer, every=1)
    trained(model, optimizer)
    with pytest.raises(RuntimeError, match="the books are lost"):
        probe.detach()
    assert left(model, optimizer) == []


@pytest.mark.parametrize("what", ["detach", "snapshot"])
@pytest.mark.parametrize("before", [True, False])
def test_a_users_hook_may_end_the_watching_or_ask_for_numbers(what: str, before: bool) -> None:
    model, optimizer = made()
    if before:  # runs ahead of the hooks of the probe, which the call has already collected
        handle = model.first.register_forward_pre_hook(lambda *_: act())
    probe = ss.watch(model, optimizer, every=1)
    if not before:
        handle = model.first.register_forward_hook(lambda *_: act())
    asked: list[Any] = []

    def act() -> None:
        if what == "detach":
            probe.detach()
        elif probe.trace:
            asked.append(probe.snapshot())

    trained(model, optimizer, 3 if what == "detach" else 0)
    if what == "snapshot":
        handle.remove()
        trained(model, optimizer)
        probe.snapshot()
        trained(model, optimizer)
        with ss.watch(model, every=1):
            handle = model.first.register_forward_hook(lambda *_: act())
            trained(model, optimizer, 2)
        assert asked
        assert all(s.sites["count"].min() > 0 for s in asked)
        probe.detach()
    handle.remove()
    assert left(model, optimizer) == []


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Python swallows what is raised in a destructor.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize(("every", "train"), [(1, trained), (2, trained), (1, trained_by_closure)])
def test_an_interrupt_at_any_moment_leaves_nothing(every: int, train: Any) -> None:
    chance, interrupts = random.Random(every), 0
    for _ in range(120):
        model = nn.Sequential(*[nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(4)])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with alarm():
            try:
                with ss.watch(model, optimizer, every=every):
                    train(model, optimizer)
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0005, 0.01))
                    train(model, optimizer, 200)
            except KeyboardInterrupt:
                interrupts += 1
        assert left(model, optimizer) == []
        torch.set_grad_enabled(True)  # an optimizer's step that is cut short may leave it off
    assert interrupts > 100


def test_a_mode_that_torch_puts_back_after_the_end_is_taken_off_again() -> None:
    """An interrupt while torch holds a mode in its hands: it is put back with the traceback."""
    depth = torch._C._len_torch_function_stack
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU())

    def interrupted(*_: Any) -> None:
        held = _pop_mode_temporarily()  # lives as long as the traceback
        held.__enter__()
        raise KeyboardInterrupt

    for again in range(2):
        with contextlib.suppress(KeyboardInterrupt), ss.watch(model, every=1):
            hook = model[1].register_forward_pre_hook(interrupted)
            model(torch.randn(3, 12))
        hook.remove()
        gc.collect()
        assert depth() == 1  # put back by torch, when everything had been removed
        if calls.CompiledMode is not None and not again:
            torch.zeros(3).add(1)  # it is called once, and then no more
            depth()
            assert depth() == 0
            continue
        with ss.watch(model, every=1) as probe:  # or until the next forward pass
            model(torch.randn(3, 12)).sum().backward()
            probe.step()
        assert depth() == 0
        assert probe.trace.last.records["0"].calls == 1
