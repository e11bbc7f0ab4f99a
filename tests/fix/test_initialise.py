"""Minibatch initialisation: golden factors, exactness, and that nothing else is touched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support import golden
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.errors import DataError, MeasureError, UsageError
from shiftscope.fix.constrain import constrain
from shiftscope.fix.initialise import absorb_bias_, lsuv_, rescale_, standardize_


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def golden_net(gold: dict[str, Any]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for raw in gold["W_raw"]:
        layer = nn.Linear(len(raw[0]), len(raw)).double()
        with torch.no_grad():
            layer.weight.copy_(double(raw))
            layer.bias.zero_()
        layers += [layer, nn.Sigmoid()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(
    ("key", "method", "options"),
    [
        ("standard_layer_pooled_ddof0", "", {}),
        ("lcw_layer_pooled_ddof0", "lcw", {}),
        ("lcw_layer_pooled_ddof0", "lcw-projection", {}),
        ("lcw_layer_pooled_ddof1", "lcw", {"ddof": 1}),
        ("lcw_per_neuron_ddof0", "lcw", {"per_neuron": True}),
    ],
)
def test_factors_and_weights_are_the_golden_ones(
    key: str, method: str, options: dict[str, Any]
) -> None:
    gold = golden("minibatch_init")
    net = golden_net(gold)
    if method:
        constrain(net, method)
    done = rescale_(net, double(gold["X_rows_are_samples"]), **options)
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer, got, want in zip(layers, done, gold[key], strict=True):
        torch.testing.assert_close(layer.weight.detach(), double(want["W"]), atol=1e-12, rtol=1e-12)
        divisor = double(want["scale_divisor"]).flatten().reshape(got.factor.shape)
        torch.testing.assert_close(1 / got.factor, divisor, atol=1e-12, rtol=0)
        torch.testing.assert_close(got.std, divisor, atol=1e-12, rtol=0)
        assert got.rows == 6


class Net(nn.Module):
    """Defined in another order than it runs; dropout and batch normalisation on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 5)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.2)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.sigmoid(self.norm(self.conv(x))))
        x = torch.sigmoid(self.up(x))
        return self.last(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(12, 3, 5, 5, generator=torch.Generator().manual_seed(1)) + 0.5


def outputs(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Every linear map's output as (rows, neurons): the naive second implementation."""
    seen: dict[str, Tensor] = {}
    handles = [
        m.register_forward_hook(
            lambda m, a, z, n=n: seen.update({n: z.detach().movedim(1, -1).flatten(0, -2).double()})
        )
        for n, m in net.named_modules()
        if n in ("last", "conv", "up")
    ]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("method", ["", "lcw", "lcw-projection", "cwn", "weight_norm", "gmp"])
@pytest.mark.parametrize("per_neuron", [False, True])
@pytest.mark.parametrize("ddof", [0, 1])
def test_every_preactivation_has_the_target_deviation(
    method: str, per_neuron: bool, ddof: int, net: Net, x: Tensor
) -> None:
    net.eval()
    if method:
        constrain(net, method)
    done = rescale_(net, x, per_neuron, ddof, 1.5)
    assert [d.site for d in done] == ["conv", "up", "last", "unused"]
    assert done[-1].reason
    assert done[-1].rows == 0
    for z in outputs(net, x).values():
        std = z.std(0, correction=ddof) if per_neuron else z.std(correction=ddof)
        torch.testing.assert_close(std, torch.full_like(std, 1.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_only_weights_change(training: bool, net: Net, x: Tensor) -> None:
    net.train(training)
    net.drop.train(not training)
    net(x).sum().backward()
    grads = {n: (p.grad, None if p.grad is None else p.grad.clone()) for n, p in named(net)}
    buffers = {n: (b, b.clone()) for n, b in net.named_buffers()}
    biases = {n: p.clone() for n, p in named(net) if n.endswith("bias")}
    modes = [m.training for m in net.modules()]
    hooks = [len(m._forward_hooks) for m in net.modules()]
    random, versions = torch.get_rng_state(), [id(p) for p in net.parameters()]
    rescale_(net, x)
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [m.training for m in net.modules()]
    assert hooks == [len(m._forward_hooks) for m in net.modules()]
    assert versions == [id(p) for p in net.parameters()]
    for n, p in named(net):
        assert p.grad is grads[n][0]
        assert p.grad is None or torch.equal(p.grad, grads[n][1])  # type: ignore[arg-type]
    for n, b in net.named_buffers():
        assert b is buffers[n][0]
        assert torch.equal(b, buffers[n][1])
    assert all(torch.equal(p, biases[n]) for n, p in named(net) if n in biases)


def named(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(net.named_parameters())


def test_input_forms(net: Net, x: Tensor) -> None:
    net.eval()
    results = []
    for batch in (x, (x, torch.zeros(12)), {"x": x}):
        clone = copy.deepcopy(net)
        rescale_(clone, batch)
        results.append(clone.state_dict())
    for other in results[1:]:
        assert all(torch.equal(v, results[0][k]) for k, v in other.items())


def test_sites_leave_other_layers_alone(net: Net, x: Tensor) -> None:
    before = net.conv.weight.clone()
    assert [d.site for d in rescale_(net, x, sites="last")] == ["last"]
    assert torch.equal(net.conv.weight, before)


def test_an_expert_without_a_token_is_left_alone() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.busy = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.idle(x[:0]), self.busy(x)])

    busy, idle = rescale_(Mixture(), torch.randn(32, 4))
    assert (busy.site, busy.reason) == ("busy", "")
    assert (idle.site, idle.reason) == ("idle", "the batch never called it as a layer")


def test_complex_layers_are_left_with_the_reason() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 6, dtype=torch.cfloat), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(torch.fft.fft(x)).abs())

    model = Spectral()
    before = model.inner.weight.detach().clone()
    head, inner = rescale_(model, torch.randn(32, 4))
    assert (head.site, head.reason) == ("head", "")
    assert inner.site == "inner"
    assert "complex" in inner.reason
    assert torch.equal(model.inner.weight, before)


def test_shared_layer_is_scaled_by_its_first_call() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Sigmoid(), shared)
    x = torch.randn(32, 4)
    assert len(rescale_(model, x)) == 1
    assert float(shared(x).detach().std(correction=0)) == pytest.approx(1, rel=1e-5)


def test_sequences_count_every_token() -> None:
    model = nn.Sequential(nn.Linear(4, 6))
    x = torch.randn(3, 7, 4)
    (done,) = rescale_(model, x)
    assert done.rows == 21


def refused(model: nn.Module, batch: Any, match: str, **options: Any) -> MeasureError:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(MeasureError, match=match) as error:
        rescale_(model, batch, **options)
    assert error.value.remedy
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    return error.value


def test_dead_neurons_are_refused_by_name_and_nothing_changes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 12))
    with torch.no_grad():
        model[2].weight[[3, 7]] = 0
    x = torch.randn(32, 4)
    for per_neuron in (False, True):
        error = refused(model, x, r"2\[3\], 2\[7\]", per_neuron=per_neuron)
        assert "2[0]" not in error.reason
    with torch.no_grad():
        model[2].weight.copy_(torch.randn(12, 4))
        model[0].bias.fill_(-100)
    refused(model, x, "no spread to rescale: 2 did not vary")
    refused(model, x, r"2\[0\], .* and 4 more", per_neuron=True)


def test_a_batch_of_one_or_of_nan_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    refused(model, torch.full((8, 4), torch.nan), "not finite")
    refused(model, torch.randn(1, 4), "did not vary", per_neuron=True)
    refused(model, torch.randn(1, 4), "no variance with ddof=1", ddof=1, sites="1")
    with pytest.raises(DataError, match="empty"):
        rescale_(model, torch.zeros(0, 4))


@pytest.mark.parametrize(("target", "ddof"), [(0.0, 0), (-1.0, 0), (1.0, -1)])
def test_arguments_that_cannot_be_meant(target: float, ddof: int) -> None:
    with pytest.raises(UsageError):
        rescale_(nn.Linear(2, 2), torch.randn(4, 2), ddof=ddof, target=target)


def test_biases_beyond_the_target_are_told() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-9.0, 9.0]))
    before = layer.weight.clone()
    with pytest.raises(UsageError, match="biases of the model alone spread by 9"):
        rescale_(layer, torch.randn(64, 4))
    assert torch.equal(layer.weight, before)


def test_a_constraint_that_fixes_the_scale_is_told_and_all_is_put_back(net: Net, x: Tensor) -> None:
    net.eval()
    constrain(net, "spectral_norm", "last")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(UsageError, match="fixes the scale"):
        rescale_(net, x)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_lsuv_reaches_unit_variance_from_orthonormal_rows(net: Net, x: Tensor) -> None:
    net.eval()
    done = {d.site: d for d in lsuv_(net, x, tolerance=1e-3, max_trials=30)}
    for z in outputs(net, x).values():
        assert abs(float(z.var(correction=0)) - 1) < 1e-3
    rows = net.last.weight.detach().double() / done["last"].factor
    torch.testing.assert_close(rows @ rows.T, torch.eye(5).double(), atol=1e-5, rtol=0)


def test_lsuv_stops_within_its_tolerance() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    x = torch.randn(4096, 16)
    (done,) = lsuv_(model, x)
    assert float(done.factor) == 1.0  # orthonormal rows keep the unit variance of the input
    (done,) = lsuv_(model, 3 * x)
    assert float(done.factor) == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("method", ["", "weight_norm", "cwn", "lcw"])
def test_standardised_neurons_have_mean_zero_and_variance_one(
    method: str, net: Net, x: Tensor
) -> None:
    net.eval()
    if method:
        constrain(net, method)
    standardize_(net, x, draw=0.05)
    for z in outputs(net, x).values():
        torch.testing.assert_close(z.mean(0), torch.zeros_like(z[0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.var(0, correction=0), torch.ones_like(z[0]), atol=1e-4, rtol=0)


def test_weight_norm_is_initialised_as_its_authors_do() -> None:
    torch.manual_seed(0)
    layer: Any = nn.Linear(20, 8).double()
    constrain(layer, "weight_norm")
    x = torch.rand(64, 20, dtype=torch.float64)
    standardize_(layer, x, draw=0.05)
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    assert float(v.detach().std()) == pytest.approx(0.05, rel=0.15)
    t = (x @ v.T / v.norm(dim=1)).detach()
    torch.testing.assert_close(g.detach().flatten(), 1 / t.std(0, correction=0))
    torch.testing.assert_close(layer.bias.detach(), -t.mean(0) / t.std(0, correction=0))


def test_absorbed_biases_cancel_the_mean_at_this_instant(net: Net, x: Tensor) -> None:
    net.eval()
    weights = {n: p.clone() for n, p in named(net) if n.endswith("weight")}
    absorb_bias_(net, x)
    assert all(torch.equal(p, weights[n]) for n, p in named(net) if n in weights)
    for z in outputs(net, x).values():
        torch.testing.assert_close(z.mean(0), torch.zeros_like(z[0]), atol=1e-6, rtol=0)
    moved = outputs(net, x + 1)["conv"].mean(0)
    assert float(moved.abs().max()) > 1e-2


@pytest.mark.parametrize("function", [standardize_, absorb_bias_])
def test_without_a_bias_there_is_nowhere_to_put_the_mean(function: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3, bias=False))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UsageError, match="1 has no bias"):
        function(model, torch.randn(16, 4))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_public_name() -> None:
    assert ss.rescale_ is rescale_
