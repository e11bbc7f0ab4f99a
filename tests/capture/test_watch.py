"""Watching a training run: right numbers, whatever a step consists of."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from training_cases import MODELS, mlp

import shiftscope as ss

COLUMNS = ["count", "z_mean", "z_var", "grad_z_mean", "grad_z_var", "grad_a_var"]


@pytest.mark.parametrize("name", MODELS)
def test_one_step_agrees_with_analyze(name: str) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(5)
    x, y = torch.randn(shape), torch.zeros(shape[0])
    loss: Callable[[Any, Any], Tensor] = lambda out, _: out.square().mean()  # noqa: E731
    want = ss.analyze(model, [(x, y)], loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1, window=1) as probe:  # frozen before the update
        loss(model(x), y).backward()
        optimizer.step()
        got = probe.snapshot()
    names = [n for n in want.records if n in got.records]
    assert len(names) >= 3
    assert list(got.records) == [n for n in want.records if n in got.records]
    for frame in ("neurons", "sites"):
        a, b = (getattr(s, frame) for s in (want, got))
        a, b = (t[t.site.isin(names)].reset_index(drop=True) for t in (a, b))
        columns = (
            [*COLUMNS, "theta_ones", "theta_mean", "shift_predicted", "z_q50", "active_fraction"]
            if frame == "neurons"
            else ["calls", "samples", "eta", "xi", "eta_measured", "xi_measured", "shift_share",
                  "phi_fw", "phi_bw", "mu_norm", "gamma"]
        )  # fmt: skip
        one, other = (t[columns].to_numpy(dtype=float) for t in (a, b))
        np.testing.assert_allclose(other, one, rtol=2e-4, atol=1e-7)
    if name == "rnn":
        assert "lstm" in dict(got.gaps)


@pytest.mark.parametrize(("options", "batches"), [({}, 1), ({"every": 1}, 6)])
def test_under_a_budget_one_batch_of_a_validation_is_recorded(
    options: dict[str, Any], batches: int
) -> None:
    """A validation falls within one step, here the first, and is as long as it is."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, **options) as probe:
        model.eval()
        with torch.no_grad():
            for _ in range(6):
                model(torch.randn(5, 6))
        model.train()
        model(torch.randn(7, 6)).square().sum().backward()
        optimizer.step()
        told = probe.overhead
        evaluated, trained = probe.snapshot("eval"), probe.snapshot("train")
    assert evaluated.manifest["batches"] == batches
    assert evaluated.records["0"].samples == 5 * batches
    assert trained.records["0"].samples == 7
    assert told["steps_recorded"] == 1


def test_phases_are_kept_apart() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1) as probe:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).sum().backward()
            optimizer.step()
        model.eval()
        with torch.no_grad(), probe.record("eval"):
            for _ in range(2):
                model(torch.randn(5, 6) + 100)
        model.train()
        trained, evaluated = probe.snapshot("train"), probe.snapshot("eval")
    assert trained.records["0"].samples == 24
    assert evaluated.records["0"].samples == 10
    assert "grad_z" not in evaluated.records["0"].streams
    assert "autograd" not in "".join(evaluated.records["0"].notes)


def test_without_an_optimizer_steps_are_told() -> None:
    model = mlp()
    probe = ss.watch(model, every=2)
    for _ in range(4):
        model(torch.randn(8, 6)).sum().backward()
        probe.step()
    assert probe.snapshot().records["0"].calls == 2
    probe.detach()
    probe.detach()
    with pytest.raises(ss.MeasureError, match="recorded since"):
        probe.snapshot()
    assert len(probe.trace.sites) == 5


def test_gradients_are_true_ones_and_overflows_are_set_apart() -> None:
    torch.manual_seed(0)
    model = mlp()
    twin = copy.deepcopy(model)
    x = [torch.randn(8, 6) for _ in range(4)]
    results = []
    for net, scaled in ((model, True), (twin, False)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        with ss.watch(net, optimizer, every=1, scaler=scaler) as probe:
            for k, batch in enumerate(x):
                loss = net(batch).square().mean()
                if k == 1:
                    if not scaled:
                        continue
                    loss = loss * 3e38
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            if not scaled:
                probe._phases.recorders["train"].discard()
            results.append((probe.snapshot(), probe.overflows))
    assert results[0][1] == 1
    assert results[0][0].manifest["overflow_steps"] == 1
    scaled_neurons = results[0][0].neurons
    assert scaled_neurons["count"].iloc[0] == 24
    # The twin's second forward has no step of its own: compare what three steps gave backward.
    one, other = (r[0].neurons[["grad_z_count", "grad_z_mean", "grad_z_var"]] for r in results)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_are_counted_once(reentrant: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Linear(6, 6), mlp()

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            out = torch.utils.checkpoint.checkpoint(self.inner, h, use_reentrant=reentrant)
            assert isinstance(out, Tensor)
            return out

    model = Block()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1) as probe:
        for _ in range(3):
            model(torch.randn(8, 6)).square().sum().backward()
            optimizer.step()
        neurons = probe.snapshot().neurons
    assert set(neurons["count"]) == {24}
    assert set(neurons.grad_z_count) == {24}


def test_several_forwards_in_a_step_and_a_faulty_one() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with ss.watch(model, optimizer, every=2, window=1) as probe:
        for _ in range(4):
            optimizer.zero_grad()
            (model(torch.randn(5, 6)).sum() + model(torch.randn(7, 6)).sum()).backward()
            with pytest.raises(RuntimeError):
                model(torch.randn(3, 9))
            optimizer.step()
    for window in probe.trace:
        record = window.snapshot.records["0"]
        assert (record.calls, record.samples, record.notes) == (2, 12, ())
        assert int(record.streams["grad_z"].moments.count[0]) == 12
    assert torch._C._len_torch_function_stack() == 0


def test_two_probes_give_the_same_numbers() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1) as one, ss.watch(model, optimizer, every=1) as two:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().sum().backward()
            optimizer.step()
        a, b = one.snapshot().neurons[COLUMNS], two.snapshot().neurons[COLUMNS]
    np.testing.assert_array_equal(a, b)
    assert torch._C._len_torch_function_stack() == 0


def test_threads_are_counted_exactly() -> None:
    model = mlp().eval()
    probe = ss.watch(model, every=1)
    work = lambda: [model(torch.randn(4, 6)) for _ in range(25)]  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    probe.step()
    record = probe.snapshot().records["0"]
    assert (record.calls, record.samples) == (100, 400)
    assert int(record.streams["z"].moments.count[0]) == 400
    probe.detach()


def test_a_run_is_resumed(tmp_path: Any) -> None:
    model = mlp()
    trace = None
    for _ in range(2):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with ss.watch(model, optimizer, every=1, window=2, resume=trace) as probe:
            for _ in range(4):
                model(torch.randn(8, 6)).sum().backward()
                optimizer.step()
        probe.trace.save(tmp_path / "run.npz")
        trace = ss.load(tmp_path / "run.npz")
    assert trace.steps == (0, 2, 4, 6)
    assert trace.next_step == 8


def test_sites_are_chosen_by_pattern() -> None:
    model = mlp()
    probe = ss.watch(model, every=1, sites=["2", "4"])
    model(torch.randn(8, 6)).sum().backward()
    probe.step()
    assert list(probe.snapshot().records) == ["2", "4"]
    probe.detach()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every"), ({"budget": 0.0}, "budget"), ({"rows": 1}, "rows"),
        ({"window": 0}, "window"), ({"optimizer": 5}, "optimizer"),
        ({"scaler": torch.amp.GradScaler("cpu")}, "scaler"),
    ],
)  # fmt: skip
def test_arguments_without_meaning_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ss.UsageError, match=words):
        ss.watch(mlp(), **options)


def test_the_functional_calls_of_a_parametrised_weight_are_seen() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1) as probe:
        for _ in range(3):
            F.mse_loss(model(torch.randn(9, 6)), torch.zeros(9, 4)).backward()
            optimizer.step()
        record = probe.snapshot().records["0"]
    assert record.calls == 3
    assert record.weights is not None


def test_a_model_that_is_trained_in_evaluation_mode_has_windows_all_along() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1, window=2) as probe:
        for step in range(5):
            optimizer.zero_grad()
            model(torch.randn(12, 6)).square().mean().backward()
            optimizer.step()
            assert len(probe.trace) == (step + 1) // 2
    assert [(w.first, w.last, w.phase) for w in probe.trace] == [
        (0, 1, "eval"),
        (2, 3, "eval"),
        (4, 4, "eval"),
    ]
    assert (probe.trace.last.neurons.query("site == '0'").grad_z_var > 0).all()
