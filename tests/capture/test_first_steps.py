"""Facts of weights are those of a site's first step in a window; gradients of all kinds average."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shiftscope as ss

STEPS = 8


class Late(nn.Module):
    """A layer in the middle that some steps go without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.skips = False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h if self.skips else torch.tanh(self.middle(h)))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def facts(window: ss.Snapshot, site: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = window.records[site].weights
    assert found is not None
    return found.norm2, found.bias, found.shift + found.bias - found.z_mean


def squares(layer: nn.Linear) -> np.ndarray:
    return layer.weight.detach().double().square().sum(1).numpy()


def bias_of(layer: nn.Linear) -> np.ndarray:
    return layer.bias.detach().double().numpy().copy()


def test_facts_of_a_site_that_begins_later_are_of_its_own_first_step() -> None:
    torch.manual_seed(0)
    model = Late()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    known = []
    with ss.watch(model, optimizer, every=1, window=4) as probe:
        for k in range(STEPS):
            model.skips = k % 4 < 2
            if k % 4 == 2:
                known.append((squares(model.middle), bias_of(model.middle)))
            optimizer.zero_grad()
            (model(torch.randn(16, 6) + 1) - k).square().mean().backward()
            optimizer.step()
    assert len(probe.trace) == 2
    for window, (norm2, bias) in zip(probe.trace, known, strict=True):
        got = facts(window.snapshot, "middle")
        np.testing.assert_allclose(got[0], norm2, rtol=1e-6)
        np.testing.assert_allclose(got[1], bias, rtol=1e-6)
        np.testing.assert_allclose(got[2], 0, atol=1e-6)


@pytest.mark.parametrize("window", [1, 4])
def test_facts_follow_a_parameter_that_is_given_other_data(window: int) -> None:
    model = mlp()
    known = []
    with ss.watch(model, every=1, window=window) as probe:
        for k in range(STEPS):
            if k % window == 0:
                known.append((squares(model[2]), bias_of(model[2])))
            model(torch.randn(16, 6) + 1).square().mean().backward()
            probe.step()
            for parameter in model.parameters():
                parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
            model[2].bias = nn.Parameter(torch.randn(4))
    assert len(probe.trace) == len(known)
    for got, (norm2, bias) in zip(probe.trace, known, strict=True):
        found = got.snapshot.records["2"].weights
        assert found is not None
        np.testing.assert_allclose(found.norm2, norm2, rtol=1e-6)
        np.testing.assert_allclose(found.bias, bias, rtol=1e-6)


@pytest.mark.parametrize("window", [1, None])
def test_facts_of_a_validation_are_of_the_weights_it_ran_with(window: int | None) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    with ss.watch(model, optimizer, every=10, window=window) as probe:
        for k in range(12):
            optimizer.zero_grad()
            (model(torch.randn(16, 6) + 1) - 1).square().mean().backward()
            optimizer.step()
            if k == 2:
                with torch.no_grad(), probe.record():
                    model(torch.randn(16, 6))
                norm2, bias = squares(model[2]), bias_of(model[2])
    got = facts(probe.trace.phase("eval").last, "2")
    np.testing.assert_allclose(got[0], norm2, rtol=1e-6)
    np.testing.assert_allclose(got[1], bias, rtol=1e-6)
    np.testing.assert_allclose(got[2], 0, atol=1e-6)


@pytest.mark.parametrize("window", [1, 2])
def test_weights_that_change_before_their_step_ends_are_told(window: int) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    told = []
    for late in (False, True):
        with ss.watch(model, every=1, window=window) as probe:
            for _ in range(2):
                model(torch.randn(16, 6)).square().mean().backward()
                for act in (optimizer.step, probe.step) if late else (probe.step, optimizer.step):
                    act()
        notes = " ".join(probe.trace[0].snapshot.records["2"].notes)
        told.append("changed between their call and the end of the step" in notes)
    assert told == [False, True]


def gradients(
    calls: Sequence[str], watched: bool
) -> tuple[ss.Trace, list[list[Tensor]], dict[str, Tensor]]:
    """A step for each word: p are calls whose input needs a gradient, d those of a detached one."""
    model, kept = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    probe = ss.watch(model, optimizer, every=1, window=4) if watched else None
    torch.manual_seed(1)
    for k, word in enumerate(calls):
        optimizer.zero_grad()
        kept.append([])
        for letter in word:
            h = torch.tanh(model[0](torch.randn(16, 6) + 1))
            z = model[2](h.detach() if letter == "d" else h)
            if not watched:
                z.register_hook(lambda grad: kept[-1].append(grad.double()))
            (model[4](model[3](z)) - k).square().mean().backward()
        optimizer.step()
    if probe is not None:
        probe.detach()
    return ss.Trace() if probe is None else probe.trace, kept, model.state_dict()


def averaged(steps: Sequence[Sequence[Tensor]]) -> tuple[int, np.ndarray, np.ndarray]:
    rows = [torch.cat([*step]) for step in steps]
    count = sum(map(len, rows))

    def mean(of: Callable[[Tensor], Tensor]) -> np.ndarray:
        return np.asarray(sum(len(r) * of(r) for r in rows) / count)

    return count, mean(lambda r: r.mean(0)), mean(lambda r: r.var(0, correction=0))


ORDERS = ["p p d d", "d d p p", "p p pd d", "d p dp pd", "pd p d pd"]


@pytest.mark.parametrize("words", ORDERS)
def test_gradients_of_calls_without_input_gradient_average_over_steps(words: str) -> None:
    calls = words.split() * 2
    trace, _, weights = gradients(calls, watched=True)
    _, kept, bare = gradients(calls, watched=False)
    assert all(torch.equal(weights[name], bare[name]) for name in bare)
    for k, window in enumerate(trace):
        got = window.snapshot.records["2"].streams["grad_z"].moments
        count, mean, variance = averaged(kept[4 * k : 4 * k + 4])
        assert int(got.count.max()) == count
        np.testing.assert_allclose(got.mean, mean, rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(got.variance, variance, rtol=1e-4)


def test_windows_of_one_kind_of_calls_keep_the_pairs_of_the_backward_gain() -> None:
    for words in ("p p p p d d d d", "d d d d p p p p", "p p p p pd pd pd pd"):
        trace, _, _ = gradients(words.split(), watched=True)
        record = trace.merge().records["2"]
        pairs = [
            window.snapshot.records["2"].streams["grad_a"].moments.count.max() for window in trace
            if "grad_a" in window.snapshot.records["2"].streams
        ]  # fmt: skip
        assert int(record.streams["grad_z_paired"].moments.count.max()) == sum(map(int, pairs))
        assert int(record.streams["grad_a"].moments.count.max()) == sum(map(int, pairs))
