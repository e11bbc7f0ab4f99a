"""Trials: they train what they copy, measure every step, and touch nothing else."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

import shiftscope as ss
from shiftscope.capture.trial import trial
from shiftscope.errors import DataError, MeasureError, UsageError
from shiftscope.fix.initialise import standardize_

LOSS = nn.functional.cross_entropy
Optimizer = torch.optim.Optimizer


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, 3)
    )


def pairs(count: int = 3, rows: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(rows, 6, generator=generator), torch.randint(3, (rows,), generator=generator))
        for _ in range(count)
    ]


def naive(model: nn.Module, optimizer: Optimizer, steps: int) -> list[dict[str, Tensor]]:
    """Plain training with everything kept: z of the two linear maps and their gradients."""
    model.train()
    seen, data = [], pairs()
    for step in range(steps + 1):
        x, y = data[step % len(data)]
        kept: dict[str, Tensor] = {}
        value = x
        for name, module in model.named_children():
            value = module(value)
            value.retain_grad()
            kept[name] = value
        optimizer.zero_grad()
        loss = LOSS(value, y)
        loss.backward()
        seen.append(kept | {"loss": loss.detach()})
        if step < steps:
            optimizer.step()
    return seen


MAKERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("as_factory", [True, False])
def test_every_window_is_that_of_plain_training(name: str, as_factory: bool) -> None:
    model = network()
    twin = copy.deepcopy(model)
    given = MAKERS[name] if as_factory else MAKERS[name](model.parameters())
    torch.manual_seed(3)  # dropout draws from the state the caller is in
    trace = trial(model, pairs(), LOSS, given, steps=4)
    torch.manual_seed(3)
    expected = naive(twin, MAKERS[name](twin.parameters()), 4)
    assert trace.steps == (0, 1, 2, 3, 4)
    for window, kept in zip(trace, expected, strict=True):
        assert window.snapshot.manifest["loss"] == pytest.approx(float(kept["loss"]), rel=1e-6)
        for site in ("0", "4"):
            neurons = window.snapshot.neurons.query("site == @site")
            z, grad = kept[site].detach().double(), kept[site].grad
            assert grad is not None
            np.testing.assert_allclose(neurons["z_mean"], z.mean(0), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(neurons["z_var"], z.var(0, correction=0), rtol=1e-4)
            variance = grad.double().var(0, correction=0)
            np.testing.assert_allclose(neurons["grad_z_var"], variance, rtol=1e-3, atol=1e-14)


def test_the_state_of_the_optimizer_is_taken_over() -> None:
    model = network()
    optimizer = MAKERS["adamw"](model.parameters())
    naive(model, optimizer, 5)
    twin = copy.deepcopy(model)
    carried = MAKERS["adamw"](twin.parameters())
    carried.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.manual_seed(1)
    trace = trial(model, pairs(), LOSS, optimizer, steps=3)
    torch.manual_seed(1)
    expected = naive(twin, carried, 3)
    losses = [window.snapshot.manifest["loss"] for window in trace]
    assert losses == pytest.approx([float(kept["loss"]) for kept in expected], rel=1e-5)
    torch.manual_seed(1)
    bare = trial(model, pairs(), LOSS, MAKERS["adamw"], steps=3)  # without its history: not equal
    assert bare[3].snapshot.manifest["loss"] != pytest.approx(losses[3], rel=1e-5)


def everything(model: nn.Module, optimizer: Optimizer) -> list[Any]:
    """All that a trial could have touched, as plain values."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    return [
        {k: v.clone() for k, v in model.state_dict().items()},
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [m.training for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        copy.deepcopy(optimizer.state_dict()),
        torch.get_rng_state(),
        (numpy_state[1].tolist(), numpy_state[2]),  # type: ignore[index]
        random.getstate(),
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Noisy(TensorDataset):
    """Draws from every generator there is."""

    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        return x + torch.randn(()) + np.random.rand() + random.random(), y  # noqa: NPY002


def loader(**options: Any) -> DataLoader[Any]:
    x, y = (torch.cat(part) for part in zip(*pairs(4), strict=True))
    generator = torch.Generator().manual_seed(9)
    return DataLoader(Noisy(x.float(), y), 8, shuffle=True, generator=generator, **options)


def test_nothing_of_the_original_changes() -> None:
    model, data = network(), loader()
    optimizer = MAKERS["adamw"](model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps optimizer.step
    LOSS(model(pairs()[0][0]), pairs()[0][1]).backward()
    optimizer.step()
    schedule.step()
    before = everything(model, optimizer)
    order = data.generator.get_state()
    trial(model, data, LOSS, optimizer, steps=5)
    assert same(before, everything(model, optimizer))
    assert torch.equal(order, data.generator.get_state())
    assert not hasattr(model, "_forward_hooks") or not model._forward_hooks


def test_nothing_changes_where_the_trial_fails() -> None:
    model, data = network(), loader()
    optimizer = MAKERS["sgd"](model.parameters())
    before = everything(model, optimizer)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if before.append(0) or len(before) > 10:
            raise ValueError("on purpose")
        return LOSS(output, target)

    with pytest.raises(MeasureError, match="on purpose"):
        trial(model, data, loss, optimizer, steps=9)
    assert same(before[:8], everything(model, optimizer))


def test_an_iteration_under_way_goes_on() -> None:
    """Persistent workers serve one iterator; the trial must not restart the user's."""

    class Guarded(DataLoader[Any]):
        persistent_workers = True

        def __iter__(self) -> Any:
            if self._iterator is None:  # what torch does with persistent workers
                self._iterator = super().__iter__()
            else:
                raise AssertionError("the iteration under way was restarted")
            return self._iterator

    x, y = (torch.cat(part) for part in zip(*pairs(4), strict=True))
    data = Guarded(TensorDataset(x, y), batch_size=8)
    under_way = iter(data)
    first = next(under_way)
    trial(network(), data, LOSS, steps=2)
    rest = [first, *under_way]
    assert torch.equal(torch.cat([part for part, _ in rest]), x)


def test_short_data_are_read_again_and_iterators_used_up() -> None:
    assert len(trial(network(), pairs(2), LOSS, steps=5)) == 6
    once: Iterator[Any] = iter(pairs(3))
    with pytest.warns(RuntimeWarning, match="ran out: 3 windows of 6"):
        trace = trial(network(), once, LOSS, steps=5)
    assert trace.steps == (0, 1, 2)
    assert list(once) == []
    assert ("", "the data ran out: 3 windows of 6 were measured") in trace.last.gaps
    assert (trace.last.manifest["steps_asked"], trace.last.manifest["data_ran_out"]) == (5, True)
    enough = trial(network(), iter(pairs(3)), LOSS, steps=2)
    assert "data_ran_out" not in enough.last.manifest
    assert not any("ran out" in reason for _, reason in enough.last.gaps)


class Lbfgs:
    def __call__(self, parameters: Any) -> Optimizer:
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=2)


@pytest.mark.parametrize("instance", [True, False])
def test_optimizers_that_need_a_closure(instance: bool) -> None:
    model = network().eval()
    made = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2) if instance else Lbfgs()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trace = trial(model, pairs(1), LOSS, made, steps=4)
    assert trace[4].snapshot.manifest["loss"] < trace[0].snapshot.manifest["loss"]
    assert same(before, dict(model.state_dict()))
    assert not model.training


def constrained(kind: str) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    if kind == "lcw":
        ss.constrain(model, "lcw")
    elif kind == "weight_norm":
        for layer in (model[0], model[2]):
            parametrizations.weight_norm(layer)
    elif kind == "spectral_norm":
        parametrizations.spectral_norm(model[0])
    elif kind == "old_weight_norm":
        with pytest.warns(FutureWarning, match="weight_norm"):
            nn.utils.weight_norm(model[0])
        model(torch.randn(2, 6)).sum().backward()  # its weight is now a node of a graph
    return model


def test_scripted_models_are_trained_though_nothing_is_seen_inside() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.script is deprecated
        model = torch.jit.script(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)))
    model[0].bias.requires_grad_(False)
    trace = trial(model, pairs(), LOSS, steps=3)
    assert trace[3].snapshot.manifest["loss"] != trace[0].snapshot.manifest["loss"]
    assert "TorchScript" in dict(trace[0].snapshot.gaps)["0"]


@pytest.mark.parametrize("kind", ["lcw", "weight_norm", "spectral_norm", "old_weight_norm"])
def test_constrained_models_are_trained_as_such(kind: str) -> None:
    model = constrained(kind)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trace = trial(model, pairs(), LOSS, steps=3)
    assert same(before, dict(model.state_dict()))
    assert trace[3].snapshot.sites["eta"][0] != trace[0].snapshot.sites["eta"][0]
    if kind == "lcw":
        assert trace[3].snapshot.sites["lcw_residual"][0] < 1e-5


def test_a_loss_with_parameters_is_copied_too() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return LOSS(output * self.scale, target)

    model, loss = network(), Scaled()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=1.0)
    trial(model, pairs(), loss, optimizer, steps=3)
    assert float(loss.scale.detach()) == 1.0
    assert loss.scale.grad is None


def test_a_loss_that_blows_up_ends_the_trial_and_is_traced() -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    trace = trial(model, pairs(), LOSS, steps=20, lr=1e30)
    assert len(trace) < 6
    assert not math.isfinite(trace.windows[-1].snapshot.manifest["loss"])
    finding = ss.diagnose(trace)[0]
    assert finding.cause == "non_finite"
    assert finding.evidence["appeared_at_step"].value == trace.steps[-1]
    assert [window.snapshot.manifest["learning_rate"] for window in trace] == [1e30] * len(trace)


def test_precision_and_state_move_together() -> None:
    model = network()
    optimizer = MAKERS["adamw"](model.parameters())
    naive(model, optimizer, 2)
    trace = trial(model, pairs(), LOSS, optimizer, steps=2, dtype=torch.float64)
    assert trace[2].snapshot.manifest["dtype"] == "float64"
    assert next(model.parameters()).dtype == torch.float32
    assert all(s["exp_avg"].dtype == torch.float32 for s in optimizer.state.values())


def test_an_old_trace_is_small() -> None:
    trace = trial(network(), pairs(), LOSS, steps=3)
    assert trace.windows[0].snapshot.records["0"].streams["a"].sample is None
    assert set(trace.windows[0].snapshot.quantiles["0"]) >= {"a", "z", "grad_z"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"rows": "a"}, "rows must be a whole number, got 'a'"),
        ({"optimizer": "adam"}, "optimizer is 'adam'"),
        ({"loss_fn": nn.CrossEntropyLoss}, "the class CrossEntropyLoss"),
        ({"loss_fn": "mse"}, "loss_fn is 'mse'"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"dtype": torch.int64}, "expected a floating dtype"),
        ({"model": torch.ones(2)}, "the model is a Tensor"),
        ({"rows": 1}, "rows must be at least 2"),
        ({"lr": math.nan}, "positive number"),
        ({"optimizer": lambda p: "adam"}, "not a torch optimizer"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1)}, "holds no parameter"),
    ],
)
def test_mistakes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        trial(**{"model": network(), "data": pairs(), "loss_fn": LOSS, **options})
    assert caught.value.remedy


def test_a_frozen_model_and_missing_losses_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing to train"):
        trial(network().requires_grad_(False), pairs(), LOSS)
    with pytest.raises(DataError, match="no loss to train on"):
        trial(network(), [x for x, _ in pairs()])
    with pytest.raises(DataError, match="no batch"):
        trial(network(), [], LOSS)
    with pytest.raises(DataError, match="data is NoneType"):
        trial(network(), None, LOSS)  # type: ignore[arg-type]


def weight_normalised(seed: int, x: Tensor) -> nn.Sequential:
    """20 x 128, sigmoid, as Salimans and Kingma (2016) initialise it from one batch."""
    model = ss.experiments.mlp(64, 128, 20, seed=seed)
    for layer in model:
        if isinstance(layer, nn.Linear):
            parametrizations.weight_norm(layer)
    standardize_(model, x[:256])
    return model


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weight_normalisation_looks_perfect_and_is_all_shift_after_a_few_steps(seed: int) -> None:
    """Kutsuna (2019), Section 4: what initialisation alone cannot tell."""
    x, y = ss.experiments.digits(seed).training
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    data = [(x[rows], y[rows]) for rows in order.split(128)[:-1]]
    trace = trial(weight_normalised(seed, x[order]), data, LOSS, steps=20, rows=64)

    def share(step: int) -> float:
        sites = trace[step].snapshot.sites
        return float(sites[sites["kind"] == "activation"]["shift_share"].mean())

    assert trace.steps == tuple(range(21))
    assert share(0) < 0.05
    assert share(20) > 0.9
    at_start = [finding.cause for finding in ss.diagnose(trace[0].snapshot)]
    assert "activation_shift" not in at_start
    finding = next(f for f in ss.diagnose(trace) if f.cause == "activation_shift")
    step = finding.evidence["appeared_at_step"].value
    assert finding.severity == "critical"
    assert isinstance(step, int)
    assert 0 < step <= 20
    assert f"appeared at step {step}" in finding.title
    assert "At step 0 it was not there." in finding.explanation
