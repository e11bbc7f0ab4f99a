"""Steps whose loss a closure computes: their numbers are filed under them, and are their own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shiftscope as ss

AGAIN = "recorded is the first time"
COLUMNS = ("count", "z_mean", "z_var", "grad_z_mean", "grad_z_var", "weight_norm", "theta_mean")
MAKE: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01),
    "lbfgs": lambda weights: torch.optim.LBFGS(weights, lr=0.1, max_iter=4),
    "line search": lambda weights: torch.optim.LBFGS(
        weights, max_iter=4, line_search_fn="strong_wolfe"
    ),
}
STEPS = 6


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


def batches() -> list[Tensor]:
    """Of each step another mean, so that a step's numbers tell whose they are."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(16, 6, generator=draw) + step for step in range(STEPS)]


class Loop:
    """A training loop whose steps take a closure, some of them or all.

    Args:
        make: Makes the optimizer.
        options: Of ``ss.watch``; None to train without.
    """

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer], options: Any = None) -> None:
        self.model = net()
        self.optimizer = make(self.model.parameters())
        self.probe = None if options is None else ss.watch(self.model, self.optimizer, **options)
        self.returned: list[Any] = []
        self.evaluations = 0

    def loss(self, x: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.model(x).square().mean()
        loss.backward()
        self.evaluations += 1
        return loss

    def run(self, with_closure: Callable[[int], bool] = lambda _: True) -> Loop:
        torch.manual_seed(2)
        for step, x in enumerate(batches()):
            if with_closure(step):
                self.returned.append(self.optimizer.step(functools.partial(self.loss, x)))
            else:
                self.loss(x)
                self.returned.append(self.optimizer.step())
        if self.probe is not None:
            self.probe.detach()
        return self


def numbers(window: Any) -> dict[str, Any]:
    return {name: window.snapshot.neurons[name].to_numpy(dtype=float) for name in COLUMNS}


def agree(one: Any, other: Any) -> None:
    assert [(w.first, w.last) for w in one] == [(w.first, w.last) for w in other]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_equal(numbers(a), numbers(b))


@pytest.mark.parametrize("options", [{"every": 1}, {"every": 3}, {}], ids=str)
@pytest.mark.parametrize("name", MAKE)
def test_training_by_closures_is_equal_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    bare, watched = Loop(MAKE[name]).run(), Loop(MAKE[name], options).run()
    assert watched.evaluations == bare.evaluations
    assert all(map(torch.equal, bare.returned, watched.returned))
    pairs = zip(bare.model.parameters(), watched.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not watched.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("options", [{"every": 1}, {"every": 1, "window": 1}, {"every": 3}, {}])
@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_by_a_closure_has_the_numbers_of_one_without(
    name: str, options: dict[str, Any], mixed: bool
) -> None:
    want = Loop(MAKE[name], options).run(lambda _: False)
    got = Loop(MAKE[name], options).run(lambda step: step % 2 == 1 if mixed else True)
    assert got.probe is not None
    assert want.probe is not None
    agree(got.probe.trace, want.probe.trace)
    assert got.probe.overhead["steps_seen"] == STEPS
    assert all(not r.notes for w in got.probe.trace for r in w.snapshot.records.values())


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("name", ["lbfgs", "line search"])
def test_of_several_evaluations_the_first_is_recorded_and_it_is_told(
    name: str, window: int
) -> None:
    loop = Loop(MAKE[name], {"every": 1, "window": window}).run()
    assert loop.probe is not None
    assert loop.evaluations > 2 * STEPS
    assert len(loop.probe.trace) == STEPS // window
    for number, made in enumerate(loop.probe.trace):
        steps = range(number * window, (number + 1) * window)
        assert (made.first, made.last) == (steps[0], steps[-1])
        record = made.snapshot.records["0"]
        assert record.calls == made.snapshot.manifest["batches"] == window
        assert all(AGAIN in "".join(r.notes) for r in made.snapshot.records.values())
        want = torch.cat(batches()[steps[0] : steps[-1] + 1]).double().mean(0)
        np.testing.assert_allclose(record.streams["a"].moments.mean, want, rtol=1e-5)


def test_facts_of_weights_are_of_those_the_forward_pass_used() -> None:
    loop = Loop(MAKE["lbfgs"], {"every": 1, "window": 1})
    weights: list[Tensor] = []
    for x in batches():
        weights.append(loop.model[0].weight.detach().clone())  # type: ignore[index]
        loop.optimizer.step(functools.partial(loop.loss, x))
    assert loop.probe is not None
    loop.probe.detach()
    for weight, window in zip(weights, loop.probe.trace, strict=True):
        got = window.snapshot.neurons.query("site == '0'").weight_norm
        np.testing.assert_allclose(got, weight.norm(dim=1), rtol=1e-6)


def test_a_layer_that_is_swapped_between_steps_is_recorded_at_once() -> None:
    loop = Loop(MAKE["lbfgs"], {"every": 1, "window": 1})
    for x in batches()[:3]:
        loop.optimizer.step(functools.partial(loop.loss, x))
        loop.model[3] = nn.Linear(8, 3)  # type: ignore[operator]
    assert loop.probe is not None
    loop.probe.detach()
    assert [list(w.snapshot.records) for w in loop.probe.trace] == [["0", "1", "3"]] * 3


def test_off_schedule_no_closure_is_touched() -> None:
    loop, seen = Loop(MAKE["sgd"], {"every": 3}), []
    loop.optimizer.register_step_post_hook(lambda _, args, kwargs: seen.append((args, kwargs)))

    def closure() -> Tensor:
        return loop.loss(batches()[0])

    for step in range(STEPS):
        loop.optimizer.step(closure) if step % 2 else loop.optimizer.step(closure=closure)
    assert [args[1:] or tuple(kwargs.values()) for args, kwargs in seen[1:3]] == [(closure,)] * 2
    assert [len(args) for args, _ in seen] == [1, 2] * 3  # handed on as it was given
    followed = seen[3][0][1]
    assert followed is not closure
    assert (followed.__name__, followed.__wrapped__) == ("closure", closure)
    followed()  # of a step that has ended: a pass of the one to come, as any other
    assert loop.probe is not None
    loop.probe.detach()
    assert loop.probe.trace.last.records["0"].calls == 3


def test_micro_batches_before_the_closure_are_of_its_step() -> None:
    loop = Loop(MAKE["sgd"], {"every": 1, "window": 1})
    first, second, *_ = batches()
    for _ in range(2):
        loop.model(first).square().mean().backward()
        loop.optimizer.step(lambda: loop.model(second).square().mean().backward())  # type: ignore[arg-type, return-value]
    assert loop.probe is not None
    loop.probe.detach()
    assert [w.snapshot.records["0"].calls for w in loop.probe.trace] == [2, 2]


def test_micro_batches_stay_where_the_closure_alone_runs_again_and_it_is_told() -> None:
    loop, errors = Loop(MAKE["sgd"], {"every": 1, "window": 1}), [ValueError()]
    first, second, *_ = batches()

    def closure() -> None:
        loop.model(second).square().mean().backward()
        if errors:
            raise errors.pop()

    loop.model(first).square().mean().backward()
    with pytest.raises(ValueError):  # noqa: PT011
        loop.optimizer.step(closure)  # type: ignore[arg-type]
    loop.optimizer.step(closure)  # type: ignore[arg-type]
    assert loop.probe is not None
    loop.probe.detach()
    (window,) = loop.probe.trace
    assert window.snapshot.records["0"].calls == 3
    assert "both tries" in "".join(window.snapshot.records["0"].notes)


class Sam(torch.optim.SGD):
    """Moves the weights by the gradients that are there, and updates by those of the closure."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.add_(0.05 * weight.grad)
        with torch.enable_grad():
            closure()
        return super().step()


def test_where_the_weights_move_before_the_closure_the_passes_before_are_recorded() -> None:
    loop = Loop(lambda weights: Sam(weights, lr=0.1), {"every": 1, "window": 1})
    for x in batches():
        loop.loss(x)
        loop.optimizer.step(functools.partial(loop.loss, x))
    assert loop.probe is not None
    loop.probe.detach()
    assert [(w.first, w.snapshot.records["0"].calls) for w in loop.probe.trace] == [
        (step, 1) for step in range(STEPS)
    ]
    for window in loop.probe.trace:
        notes = "".join(window.snapshot.records["0"].notes)
        assert "changed ones" in notes
        assert AGAIN in notes


class Lazy(torch.optim.SGD):
    """Needs no closure, and calls none; its step calls that of its base class."""

    def step(self, closure: Any = None) -> Any:
        return super().step()


def test_a_closure_that_is_never_called_changes_nothing() -> None:
    loop = Loop(lambda weights: Lazy(weights, lr=0.1), {"every": 1, "window": 1})
    for x in batches():
        loop.loss(x)
        loop.optimizer.step(lambda: pytest.fail("called"))
    assert loop.probe is not None
    loop.probe.detach()
    assert [w.snapshot.records["0"].calls for w in loop.probe.trace] == [1] * STEPS
    assert [w.first for w in loop.probe.trace] == [*range(STEPS)]


class Looks(torch.optim.SGD):
    """Runs the model itself within a step."""

    model: nn.Module

    def step(self, closure: Any = None) -> Any:
        self.model(torch.randn(4, 6))
        return super().step()


def test_a_model_that_runs_within_a_step_without_a_closure_is_left_out() -> None:
    loop = Loop(lambda weights: Looks(weights, lr=0.1), {"every": 1, "window": 2})
    loop.optimizer.model = loop.model  # type: ignore[attr-defined]
    loop.run(lambda _: False)
    assert loop.probe is not None
    assert [w.snapshot.records["0"].samples for w in loop.probe.trace] == [32] * 3
    assert AGAIN in "".join(loop.probe.trace.last.records["0"].notes)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["forward", "behind it", "backward"])
def test_an_exception_of_the_closure_stays_and_the_retry_is_what_counts(
    kind: type[BaseException], where: str
) -> None:
    loop, error = Loop(MAKE["sgd"], {"every": 1, "window": 1}), kind("the user's")

    def raises(*_: Any) -> Any:
        raise error

    def closure() -> Tensor:
        hook = loop.model[2].register_forward_hook(raises) if where == "forward" else None  # type: ignore[operator]
        try:
            loss = loop.model(batches()[5]).square().mean()
        finally:
            if hook is not None:
                hook.remove()
        if where == "backward":
            loss.register_hook(raises)
            loss.backward()
        raise error

    with pytest.raises(kind) as caught:
        loop.optimizer.step(closure)
    assert caught.value is error
    loop.run()
    want = Loop(MAKE["sgd"], {"every": 1, "window": 1})
    want.run()
    assert loop.probe is not None
    assert want.probe is not None
    agree(loop.probe.trace, want.probe.trace)


def test_two_probes_follow_one_closure() -> None:
    loop = Loop(MAKE["lbfgs"], {"every": 1, "window": 1})
    with ss.watch(loop.model, loop.optimizer, every=2, window=1) as other:
        loop.run()
    assert loop.probe is not None
    assert [w.first for w in other.trace] == [0, 2, 4]
    for window in other.trace:
        np.testing.assert_equal(numbers(window), numbers(loop.probe.trace[window.first]))


def test_an_optimizer_with_hooks_is_copied_without_them() -> None:
    loop = Loop(MAKE["sgd"], {"every": 1})
    twin = copy.deepcopy(loop.optimizer)
    assert not twin._optimizer_step_pre_hooks
    assert loop.optimizer.state_dict()["param_groups"]
    assert loop.probe is not None
    loop.probe.detach()


@pytest.mark.filterwarnings("ignore")
def test_compiled_steps_take_closures() -> None:
    def run(options: Any) -> Loop:
        torch._dynamo.reset()
        loop = Loop(MAKE["sgd"], options)

        def step(closure: Any) -> Any:
            return loop.optimizer.step(closure)

        compiled = torch.compile(step, backend="aot_eager")
        torch.manual_seed(2)
        for x in batches():
            loop.returned.append(compiled(functools.partial(loop.loss, x)))
        return loop

    bare, watched = run(None), run({"every": 3, "window": 1})
    assert all(map(torch.equal, bare.returned, watched.returned))
    assert watched.probe is not None
    watched.probe.detach()
    assert [w.first for w in watched.probe.trace] == [0, 3]
    eager = Loop(MAKE["sgd"], {"every": 3, "window": 1}).run()
    assert eager.probe is not None
    agree(watched.probe.trace, eager.probe.trace)
    torch._dynamo.reset()
