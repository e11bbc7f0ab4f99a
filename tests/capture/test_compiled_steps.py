"""Steps inside compiled functions, and the stance of the compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
import torch._dynamo.eval_frame as frames
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.capture.stance import Eager


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    dynamo.reset()
    dynamo.utils.counters.clear()
    yield
    dynamo.reset()
    torch.compiler.set_stance("default")


def run(what: str, watching: dict[str, Any] | None, steps: int = 7) -> tuple[Any, ...]:
    """Train; the weights, the number of compiled graphs, and what was recorded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = None
    if watching is not None:
        probe = ss.watch(model, None if what == "probe.step" else optimizer, **watching)

    def advance() -> None:
        optimizer.step()
        if probe is not None and what == "probe.step":
            probe.step()

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        (update if what == "optimizer" else advance)()

    update: Callable[[], None] = torch.compile(advance, backend="aot_eager")
    whole = step if what == "optimizer" else torch.compile(step, backend="aot_eager")
    for _ in range(steps):
        whole(torch.randn(16, 12))
    snapshot = None if probe is None else probe.snapshot()
    if probe is not None:
        probe.detach()
    graphs = dynamo.utils.counters["stats"]["unique_graphs"]
    return [p.detach() for p in model.parameters()], graphs, snapshot


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ["optimizer", "step", "probe.step"])
def test_steps_inside_a_compiled_function_are_recorded(what: str) -> None:
    bare, graphs, _ = run(what, None)
    for watching, recorded in (({"every": 3}, 3), ({"every": 1}, 7), ({}, 1)):
        dynamo.reset()
        dynamo.utils.counters.clear()
        weights, watched, snapshot = run(what, watching)
        assert all(torch.equal(a, b) for a, b in zip(bare, weights, strict=True))
        assert watched <= graphs  # nothing was compiled once more on our account
        assert snapshot.manifest["steps"] == recorded
        assert set(snapshot.sites["count"]) == {16 * recorded}
    assert frames._stance.stance == "default"


def test_a_stance_that_the_user_sets_meanwhile_stays() -> None:
    first, second = Eager(), Eager()
    first.hold()
    assert frames._stance.stance == "force_eager"
    second.hold()
    torch.compiler.set_stance("fail_on_recompile")
    first.release()
    second.release()
    assert frames._stance.stance == "fail_on_recompile"


def test_a_stance_of_the_user_that_overlaps_a_recorded_step_is_put_back() -> None:
    torch.compiler.set_stance("eager_on_recompile")
    claim = Eager()
    claim.hold()
    with torch.compiler.set_stance("default"):
        claim.release()
        assert frames._stance.stance == "default"
    assert frames._stance.stance == "eager_on_recompile"
    claim.hold()
    claim.release()
    assert frames._stance.stance == "eager_on_recompile"
