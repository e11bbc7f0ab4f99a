"""Statistics of many steps: those of one step are merged exactly, steps are averaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tally_support import READERS, read_by
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.archive import dump_trace
from shiftscope.capture import ledger
from shiftscope.tally import RowSample


@pytest.fixture(params=READERS, autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here holds for each way of reading a tensor."""
    read_by(request.param, monkeypatch)


pytestmark = [  # the interpreter computes with numpy
    pytest.mark.filterwarnings("ignore:invalid value encountered"),
    pytest.mark.filterwarnings("ignore:overflow encountered"),
]


class Stored:
    """Everything that passes a layer, kept, step by step."""

    def __init__(self, layer: nn.Module) -> None:
        self.steps: list[list[np.ndarray[Any, Any]]] = [[]]
        layer.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, out: Tensor) -> None:
        rows = out.detach().double().movedim(1, -1).reshape(-1, out.shape[1])
        self.steps[-1].append(rows.numpy().copy())

    def moments(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Averages over steps, weighted by rows, of means and of variances within the step."""
        steps = [np.concatenate(step) for step in self.steps if step]
        rows = [len(step) for step in steps]
        means = np.average([s.mean(0) for s in steps], axis=0, weights=rows)
        return means, np.average([s.var(0) for s in steps], axis=0, weights=rows)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 6), nn.Sigmoid(), nn.Linear(6, 2)
    )


@pytest.mark.parametrize("parts", [1, 3, 12])
@pytest.mark.parametrize("ragged", [False, True])
def test_moving_weights_make_no_variance(parts: int, ragged: bool) -> None:
    """Micro-batches, down to one sample each, are one step; steps are averaged."""
    model = net()
    stored = [Stored(model[k]) for k in (0, 3, 5)]
    optimizer = torch.optim.SGD(model.parameters(), lr=3.0)  # far enough to tell drift
    generator = torch.Generator().manual_seed(1)
    with ss.watch(model, optimizer, every=1) as probe:
        for step in range(7):
            size = 12 if not ragged or step % 3 else 7
            optimizer.zero_grad()
            for x in torch.randn(size, 2, 4, 4, generator=generator).chunk(parts):
                (model(x) - 1).square().sum().backward()
            optimizer.step()
            for one in stored:
                one.steps.append([])
    assert len(probe.trace) == 1
    for name, one in zip(("0", "3", "5"), stored, strict=True):
        moments = probe.trace.last.records[name].streams["z"].moments
        mean, variance = one.moments()
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moments.variance, variance, rtol=2e-5, atol=1e-9)


def test_a_module_used_many_times_in_a_step() -> None:
    torch.manual_seed(0)
    cell, act, head = nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 1)
    model = nn.ModuleList([cell, act, head])
    stored = [Stored(layer) for layer in (cell, act, head)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with ss.watch(model, optimizer, every=1) as probe:
        for step in range(4):
            optimizer.zero_grad()
            h = torch.randn(3, 5)
            for _ in range(2 + step % 2):
                h = act(cell(h))
            head(h).square().mean().backward()
            optimizer.step()
            for one in stored:
                one.steps.append([])
    sites = {"0": ("z", stored[0]), "1": ("a", stored[1]), "2": ("z", stored[2])}
    for name, (stream, one) in sites.items():
        moments = probe.trace.last.records[name].streams[stream].moments
        mean, variance = one.moments()
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moments.variance, variance, rtol=1e-5)


@pytest.mark.parametrize("crowded", [False, True])
def test_rows_of_a_long_step_are_sampled_as_one_stream(
    crowded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is cut, and emptied before its end; rows drawn and waiting stay few."""
    if crowded:
        monkeypatch.setattr(ledger, "_SAMPLED", 1000)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4)), torch.randn(300, 5)
    z = model(x).detach()
    waiting = []
    with ss.watch(model, every=1, window=1, rows=50) as probe:
        for part in x.split([7, 13, 100, 100, 80]):
            model(part).square().sum().backward()
            waiting.append(probe._phases.recorders["train"]._sampler.waiting)
        probe.step()
        got = probe.snapshot().records["0"].streams["z"].sample
    assert got is not None
    want = RowSample.of(z, 50, got.seed)
    assert (got.seen, got.kept) == (300, 50)
    torch.testing.assert_close(got.rows, want.rows)
    assert (max(waiting) < 3000) == crowded


class Loop(nn.Module):
    """Uses one layer three times, and keeps what comes back to it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(5, 5)
        self.grads: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            z = self.cell(x)
            if z.requires_grad:
                z.register_hook(self.grads.append)
            x = torch.tanh(z)
        return x


def test_calls_that_pass_no_gradient_on_belong_to_their_step() -> None:
    """The first call of a cell has an input without gradient; it counts for grad_z all the same."""
    torch.manual_seed(0)
    model = Loop()
    inputs = [torch.randn(6, 5) * (1 + k) for k in range(3)]
    exact = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with ss.watch(model, optimizer, every=1, window=3) as probe:
        for x in inputs:
            model.grads = []
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            exact.append(model.grads)
    (window,) = probe.trace
    streams = window.snapshot.records["cell"].streams
    for name, kept in (
        ("grad_z", slice(None)),
        ("grad_z_paired", slice(2)),
    ):  # the last comes first
        steps = [torch.cat(grads[kept]).double() for grads in exact]
        variance = torch.stack([g.var(0, unbiased=False) for g in steps]).mean(0)
        got = streams[name].moments
        assert got.count.tolist() == [sum(len(g) for g in steps)] * 5
        torch.testing.assert_close(got.variance, variance, rtol=1e-5, atol=0.0)


def test_a_long_step_that_is_emptied_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger.Ledger, "crowded", property(lambda self: bool(self._pending)))
    model = net()
    stored = Stored(model[3])
    with ss.watch(model, every=1) as probe:
        for _ in range(3):
            for k in range(5):
                model(torch.randn(2, 2, 4, 4) + k)
            with torch.no_grad():
                model[3].weight.mul_(3.0)
            probe.step()
            stored.steps.append([])
    moments = probe.trace.last.records["3"].streams["z"].moments
    mean, variance = stored.moments()
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.variance, variance, rtol=1e-5)


def trained(model: nn.Module, **options: Any) -> ss.Trace:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(1)
    with ss.watch(model, optimizer, **options) as probe:
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.randn(40, 2, 4, 4, generator=generator)).square().mean().backward()
            optimizer.step()
    return probe.trace


def test_a_window_is_the_average_of_its_steps() -> None:
    single, whole = trained(net(), every=1, window=1), trained(net(), every=1)
    assert (len(single), len(whole)) == (12, 1)
    joined, got = single.merge().neurons, whole.last.neurons
    for name in ("count", "z_mean", "z_var", "grad_z_var", "a_mean", "grad_a_mean"):
        np.testing.assert_allclose(got[name], joined[name], rtol=1e-5, atol=1e-9)
    drifting = single[0].snapshot
    for window in single.windows[1:]:
        drifting = drifting.merge(window.snapshot)
    assert (drifting.neurons.z_var > 1.2 * got.z_var).any()


def test_the_shift_is_predicted_from_the_weights_of_the_same_step() -> None:
    model = net()
    first = model[3].weight.detach().clone()
    got = trained(model, every=1).last
    facts = got.records["3"].weights
    assert facts is not None
    np.testing.assert_allclose(facts.norm2, first.double().square().sum(1), rtol=1e-6)
    linear = got.neurons[got.neurons.site.isin(["0", "3", "5"])]
    np.testing.assert_allclose(linear.shift_measured, linear.shift_predicted, atol=1e-6)
    off = (linear.z_mean - linear.bias - linear.shift_predicted).abs()
    assert off.max() > 1e-3  # the average over all steps is another number


def test_extremes_are_those_of_all_rows_or_not_known() -> None:
    whole = trained(net(), every=1, window=1)[0].snapshot.neurons
    linear = whole[whole.site.isin(["3", "5"])]
    assert (linear.z_min <= linear.z_mean).all()
    assert (linear.z_mean <= linear.z_max).all()
    assert trained(net(), every=1).last.neurons.z_min.isna().all()


def test_the_first_step_of_a_value_that_is_not_finite() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1) as probe:
        for step in range(9):
            optimizer.zero_grad()
            x = torch.randn(8, 2, 4, 4)
            loss = F.mse_loss(model(x), torch.ones(8, 2))
            (loss * (float("inf") if step == 4 else 1.0)).backward()
            optimizer.step()
    records = probe.trace.last.records
    assert records["5"].lost_since == {"grad_z": 4, "grad_a": 4, "a": 5, "z": 5}
    assert records["0"].lost_since == {"grad_z": 4, "z": 5}  # its data stay finite
    again = ss.Trace.parse(dump_trace(probe.trace), "again").last.records
    assert again["5"].lost_since == records["5"].lost_since
    found = next(f for f in ss.diagnose(probe.trace) if f.cause == "non_finite")
    assert "appeared at step 4 (train), first in 5, stream grad_z" in found.title


def test_few_finite_neurons_do_not_speak_for_a_site() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight[2:] = torch.nan
    row = ss.analyze(model, [torch.randn(20, 4)]).sites.set_index("site").loc["0"]
    assert row[["shift_share", "within_var", "eta_measured"]].isna().all()
    assert "6 of 8 neurons have no finite value in z" in row.notes
    assert row.nonfinite == 6 * 20
    with torch.no_grad():
        model[0].weight[2:6] = 1.0
    known = ss.analyze(model, [torch.randn(20, 4)]).sites.set_index("site").loc["0"]
    assert 0 < known.shift_share_raw < 1
