"""Training loops that skip, raise, overflow or begin anew: told, and kept apart."""

import contextlib
import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shiftscope as ss

X, Y = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def started() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = network()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def back(model: nn.Module, x: Tensor = X) -> None:
    F.cross_entropy(model(x), Y[: len(x)]).backward()


def notes(trace: ss.Trace) -> dict[int, str]:
    return {w.first: " ".join(w.snapshot.records["0"].notes) for w in trace}


@pytest.mark.parametrize("raises", [False, True])
def test_gradients_that_are_thrown_away_are_told(raises: bool) -> None:
    def fail(grad: Tensor) -> None:
        raise ZeroDivisionError

    model, optimizer = started()
    weight: Any = model[0].weight
    with ss.watch(model, optimizer, every=1, window=1) as probe:
        for step in range(3):
            optimizer.zero_grad()
            if step == 1:
                handle = weight.register_hook(fail) if raises else None
                with contextlib.suppress(ZeroDivisionError):
                    back(model, 100 * X)
                if handle is not None:
                    handle.remove()
                optimizer.zero_grad()
            back(model)
            optimizer.step()
    told = notes(probe.trace)
    assert "was kept in .grad" in told[1]
    assert "was kept in .grad" not in told[0] + told[2]


def test_accumulation_is_no_throwing_away() -> None:
    model, optimizer = started()
    with ss.watch(model, optimizer, every=1, window=1) as probe:
        optimizer.zero_grad()
        for part in X.split(8):
            back(model, part)
        optimizer.step()
    assert notes(probe.trace) == {0: ""}
    assert probe.trace.last.records["0"].calls == 4


def test_several_backward_passes_through_one_call_say_what_their_gradients_are() -> None:
    model, optimizer = started()
    with ss.watch(model, optimizer, every=1, window=1) as probe:
        loss = F.cross_entropy(model(X), Y)
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()
    assert "of each by itself, not of their sum" in notes(probe.trace)[0]


@pytest.mark.parametrize("window", [1, 3])
def test_training_in_evaluation_mode_and_a_validation_share_no_window(window: int) -> None:
    model, optimizer = started()
    model.eval()
    with ss.watch(model, optimizer, every=1, window=window) as probe:
        for _ in range(3):
            optimizer.zero_grad()
            back(model)
            optimizer.step()
            with torch.no_grad(), probe.record():
                model(100 * X)
    spread = [w.snapshot.records["0"].streams["z"].moments.variance.mean() for w in probe.trace]
    loud = np.sqrt(np.asarray(spread, dtype=float)) > 10
    assert {w.snapshot.records["0"].calls for w in probe.trace} == {1}
    assert loud.tolist() == [False, True] * 3


def test_after_an_overflow_at_the_start_the_first_step_is_still_to_come() -> None:
    model, optimizer = started()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-60)
    with ss.watch(model, optimizer) as probe:
        for _ in range(30):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(X), Y) * 1e4).backward()
            scaler.step(optimizer)
            scaler.update()
        assert len(probe.trace) >= 1
        assert probe.overhead["steps_recorded"] == len(probe.trace)
    for window in probe.trace:
        assert not window.snapshot.records["0"].lost_since


def test_a_run_that_begins_before_the_end_of_its_trace_makes_those_windows_anew() -> None:
    def run(steps: int, **options: Any) -> ss.Trace:
        model, optimizer = started()
        with ss.watch(model, optimizer, every=1, window=1, **options) as probe:
            for _ in range(steps):
                optimizer.zero_grad()
                back(model)
                optimizer.step()
        return probe.trace

    trace = run(9)
    again = run(3, resume=trace, start=3)
    assert [w.first for w in again] == [0, 1, 2, 3, 4, 5]
    assert (again.steps_done, again.next_step) == (6, 6)
    later = run(2, resume=again, start=10)
    assert [w.first for w in later] == [0, 1, 2, 3, 4, 5, 10, 11]


def test_a_step_without_rows_says_so() -> None:
    model, optimizer = started()
    with ss.watch(model, optimizer, every=1, window=1) as probe:
        for x in (X, X[:0]):
            optimizer.zero_grad()
            F.cross_entropy(model(x), Y[: len(x)], reduction="sum").backward()
            optimizer.step()
    reason, remedy = probe.trace.missed["train"]
    assert "always with no rows" in reason
    assert "may be empty" in remedy


def test_an_optimizer_that_never_steps_is_told() -> None:
    model, optimizer = started()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer) as probe:
        for _ in range(5):
            other.zero_grad(set_to_none=False)
            back(model)
            other.step()
    assert "made no step" in notes(probe.trace)[0]


@pytest.mark.parametrize("phase", ["", "  "])
def test_a_phase_without_a_name_is_refused(phase: str) -> None:
    with (
        ss.watch(network()) as probe,
        pytest.raises(ss.UsageError, match="no name"),
        probe.record(phase),
    ):
        pass


def test_a_copy_of_a_model_that_holds_its_probe_goes_on_unwatched() -> None:
    model, optimizer = started()
    model.__dict__["probe"] = probe = ss.watch(model, optimizer, every=1, window=1)
    back(model)
    other = copy.deepcopy(model)
    assert other.__dict__["probe"] is probe
    back(other)
    optimizer.step()
    assert probe.trace.last.records["0"].calls == 1
    with pytest.raises(ss.UsageError, match="cannot be pickled"):
        pickle.dumps(probe)
    probe.detach()
