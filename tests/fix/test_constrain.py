"""The verbs: what is changed, what is refused, and that a released model is as it was."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import shiftscope as ss
from shiftscope.errors import DataError, UsageError
from shiftscope.fix.constrain import METHODS, Change, constrain, is_constrained, release
from shiftscope.fix.unroll import Unroll


class Net(nn.Module):
    """Linear maps of every kind, in an order of execution that is not the order of definition."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4 * 81, 10)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.grouped(torch.relu(self.norm(self.conv(x)))))
        return self.head(torch.sigmoid(self.up(x)).flatten(1))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(1)
    return Net()


def options(method: str, x: Tensor) -> dict[str, Any]:
    return {"batch": x} if method == "lcw-data" else {}


def traces(model: nn.Module) -> list[Any]:
    """Everything a constraint could leave behind."""
    found: list[Any] = [list(model.state_dict()), [(n, id(p)) for n, p in model.named_parameters()]]
    for module in model.modules():
        found.append((type(module), sorted(vars(module)), list(module._parameters)))
        found.extend(len(v) for k, v in sorted(vars(module).items()) if k.endswith("hooks"))
    return found


SITES = ["head", "conv", "grouped", "up"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_release_leaves_the_model_as_it_was(
    method: str, training: bool, net: Net, x: Tensor
) -> None:
    net.train(training)
    before = traces(net)
    changes = constrain(net, method, **options(method, x))
    assert [(c.site, c.action) for c in changes] == [(s, "constrain") for s in SITES]
    assert is_constrained(net)
    assert is_constrained(net, method)
    assert list(net.state_dict()) != before[0]
    net.eval()
    y = net(x).detach()
    net.train(training)
    released = release(net)
    assert [(c.site, c.method, c.action) for c in released] == [
        (s, method, "release") for s in SITES
    ]
    assert traces(net) == before
    assert not is_constrained(net)
    assert all(type(p) is nn.Parameter and p.requires_grad for p in net.parameters())
    assert release(net) == []
    net.eval()
    torch.testing.assert_close(net(x), y, rtol=1e-6, atol=1e-6 * float(y.abs().max()))
    fresh = Net().eval()
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    torch.testing.assert_close(fresh(x), y, rtol=1e-6, atol=1e-6 * float(y.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_constraining_twice_changes_nothing(method: str, net: Net, x: Tensor) -> None:
    constrain(net, method, **options(method, x))
    net.eval()
    before, state = traces(net), copy.deepcopy(net.state_dict())
    again = constrain(net, method, **options(method, x))
    assert {c.action for c in again} == {"keep"}
    assert traces(net) == before
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_dry_run_lists_the_same_and_changes_nothing(method: str, net: Net, x: Tensor) -> None:
    before, state = traces(net), copy.deepcopy(net.state_dict())
    listed = constrain(net, method, dry_run=True, **options(method, x))
    assert traces(net) == before
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert listed == constrain(net, method, **options(method, x))


@pytest.mark.parametrize("method", METHODS)
def test_state_dicts_copies_and_training(method: str, net: Net, x: Tensor) -> None:
    constrain(net, method, **options(method, x))
    other = Net()
    constrain(other, method, **options(method, x + 1))
    other.load_state_dict(net.state_dict(), strict=True)
    clone = copy.deepcopy(net)
    for model in (net, other, clone):
        model.eval()
    torch.testing.assert_close(other(x), net(x))
    sgd = torch.optim.SGD(clone.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    before = net(x).detach()
    for _ in range(3):
        sgd.zero_grad()
        clone(x).square().mean().backward()
        sgd.step()
    assert all(p.grad is not None for p in clone.parameters())
    assert torch.equal(net(x), before)
    trained = clone(x).detach()
    assert not torch.allclose(trained, before)
    release(clone)
    torch.testing.assert_close(clone(x), trained)
    assert torch.equal(net(x), before)  # copies share a class: one's release is not the other's


@pytest.mark.parametrize("method", ["lcw", "lcw-projection", "cwn"])
def test_rows_sum_to_zero(method: str, net: Net, x: Tensor) -> None:
    constrain(net, method)
    for name in SITES:
        layer = net.get_submodule(name)
        rows = Unroll.of(layer).rows(layer.weight)  # type: ignore[arg-type]
        bound = 1.2e-7 * rows.shape[1] ** 0.5 * rows.norm(dim=1)
        assert bool((rows.sum(1).abs() <= bound).all())


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_data_aware_means_are_those_of_the_constrained_model(
    momentum: float | None, net: Net, x: Tensor
) -> None:
    net.eval()
    constrain(net, "lcw-data", batch=(x, None), momentum=momentum)
    seen: dict[str, Tensor] = {}
    for name in SITES:
        net.get_submodule(name).register_forward_hook(
            lambda m, a, z, name=name: seen.update({name: z.movedim(1, -1).flatten(0, -2)})
        )
    net(x)
    for name in SITES:
        bias = getattr(net.get_submodule(name), "bias", None)
        means = seen[name].detach().mean(0)
        expected = torch.zeros_like(means) if bias is None else bias.detach()
        torch.testing.assert_close(means, expected, atol=1e-6, rtol=0)


def test_a_dry_run_sees_what_the_constraints_before_a_layer_do(x: Tensor) -> None:
    # behind a constrained layer without bias the mean is zero: nothing is left to constrain
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 6, bias=False), nn.Linear(6, 4))
    listed = constrain(model, "lcw-data", batch=x, dry_run=True)
    assert [(c.site, c.action) for c in listed] == [("1", "constrain"), ("2", "skip")]
    assert not is_constrained(model)
    assert constrain(model, "lcw-data", batch=x) == listed


def test_running_mean_follows_training_data_only(net: Net, x: Tensor) -> None:
    layer = nn.Sequential(nn.Linear(3, 4), nn.Identity())
    data = x.flatten(2).mean(2)
    constrain(layer, "lcw-data", batch=data, momentum=0.25)
    mean = layer[0].parametrizations.weight[0].mean.clone()
    layer.eval()
    layer(data + 1)
    assert torch.equal(layer[0].parametrizations.weight[0].mean, mean)
    layer.train()
    layer(data + 1)
    torch.testing.assert_close(layer[0].parametrizations.weight[0].mean, mean + 0.25)
    copy.deepcopy(layer)(data + 1)
    torch.testing.assert_close(layer[0].parametrizations.weight[0].mean, mean + 0.25)
    release(layer)
    assert not layer[0]._forward_hooks


def test_a_mean_of_noise_gives_no_direction(x: Tensor) -> None:
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    data = torch.randn(64, 5, generator=torch.Generator().manual_seed(3))
    changes = constrain(model, "lcw-data", batch=data)
    assert [(c.site, c.action) for c in changes] == [("1", "skip"), ("3", "constrain")]
    assert "2 standard errors" in changes[0].reason


def test_measuring_leaves_buffers_modes_gradients_and_random_state(net: Net, x: Tensor) -> None:
    net(x).sum().backward()
    grads = [p.grad for p in net.parameters()]
    buffers = {k: v.clone() for k, v in net.named_buffers()}
    random, modes = torch.get_rng_state(), [m.training for m in net.modules()]
    constrain(net, "lcw-data", batch=x, dry_run=True)
    assert all(a is b.grad for a, b in zip(grads, net.parameters(), strict=True))
    assert all(torch.equal(v, buffers[k]) for k, v in net.named_buffers())
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [m.training for m in net.modules()]


@pytest.mark.parametrize(
    ("sites", "chosen"),
    [
        ("*", SITES),
        ("conv", ["conv"]),
        (["con*", "u?"], ["conv", "up"]),
        (lambda name, module: isinstance(module, nn.Linear), ["head"]),
    ],
)
def test_sites_are_patterns_or_a_predicate(sites: Any, chosen: list[str], net: Net) -> None:
    assert [c.site for c in constrain(net, "lcw", sites)] == chosen
    assert [n for n in SITES if is_constrained(net.get_submodule(n))] == chosen
    assert [c.site for c in release(net, sites)] == chosen


def test_a_single_layer_is_a_model_too() -> None:
    layer = nn.Linear(4, 3)
    assert constrain(layer) == [Change("", "Linear", "lcw", "constrain")]
    assert constrain(layer) == [Change("", "Linear", "lcw", "keep")]
    assert release(layer) == [Change("", "Linear", "lcw", "release")]
    assert type(layer) is nn.Linear


def reasons(model: nn.Module, method: str = "lcw", **more: Any) -> dict[str, str]:
    return {c.site: c.reason for c in constrain(model, method, **more) if c.action == "skip"}


def test_a_compiled_model_is_named_constrained_measured_and_released_like_any_other() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 4))
    x = torch.rand(32, 8)
    model = torch.compile(plain, backend="eager")
    model(x)
    assert [c.site for c in constrain(model, "lcw-data", batch=x)] == ["0", "2"]  # type: ignore[arg-type]
    torch.testing.assert_close(model(x).detach().mean(0), plain[2].bias.detach(), atol=1e-6, rtol=0)
    assert [d.site for d in ss.rescale_(model, x)] == ["0", "2"]
    assert float(model(x).detach().std(correction=0)) == pytest.approx(1, rel=1e-5)
    release(model)  # type: ignore[arg-type]
    assert float(model(x).detach().std(correction=0)) == pytest.approx(1, rel=1e-5)


def test_what_cannot_be_constrained_is_left_alone_with_a_reason() -> None:
    tied = nn.Linear(6, 9, bias=False)
    foreign = type("Linear", (nn.Module,), {"__module__": "others"})()  # as graph packages have
    foreign.weight = nn.Parameter(torch.randn(3, 3))
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(9, 6),
            "tied": tied,
            "attention": nn.MultiheadAttention(6, 2),
            "rnn": nn.LSTM(6, 6),
            "narrow": nn.Linear(1, 3),
            "lazy": nn.LazyLinear(3),
            "complex": nn.Linear(3, 3, dtype=torch.complex64),
            "theirs": parametrizations.weight_norm(nn.Linear(3, 3)),
            "foreign": foreign,
            "plain": nn.Linear(3, 3),
        }
    )
    tied.weight = model["embedding"].weight  # type: ignore[assignment]
    found = reasons(model)
    assert set(found) == set(model) - {"plain"}
    for site, word in {
        "embedding": "Embedding is neither",
        "tied": "shared by embedding, tied",
        "attention": "in-projection",
        "rnn": "LSTM is neither",
        "foreign": "others.Linear is neither",
        "narrow": "one entry",
        "lazy": "lazy",
        "complex": "complex64",
        "theirs": "parametrization of its own",
    }.items():
        assert word in found[site]
    assert is_constrained(model["plain"])
    assert is_constrained(model["attention"].out_proj)  # type: ignore[arg-type]
    assert {c.site for c in release(model)} == {"plain", "attention.out_proj"}
    assert parametrize.is_parametrized(model["theirs"])


def test_attention_computes_with_its_constrained_out_projection() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    constrain(block)
    slow = block(x)
    with torch.no_grad():
        torch.testing.assert_close(block(x), slow)
    release(block)
    torch.testing.assert_close(block(x), slow)


@pytest.mark.parametrize(
    ("method", "more", "word"),
    [
        ("lwc", {}, "unknown method"),
        ("lcw", {"scale": 2.0}, "no option 'scale'"),
        ("gmp", {"channelwise": True}, "no option 'channelwise'"),
        ("lcw-data", {}, "needs data"),
        ("lcw-data", {"batch": torch.ones(1, 2), "momentum": 1.5}, "momentum"),
        ("lcw", {"sites": "encoder.*"}, "no weight-carrying layer matches"),
    ],
)
def test_mistakes_are_told(method: str, more: dict[str, Any], word: str, net: Net) -> None:
    before = traces(net)
    with pytest.raises(UsageError, match=word) as error:
        constrain(net, method, **more)
    assert error.value.remedy
    assert traces(net) == before


def test_another_constraint_is_not_overwritten(net: Net) -> None:
    constrain(net, "lcw", "conv")
    before = traces(net)
    with pytest.raises(UsageError, match="conv obeys 'lcw' already, not 'gmp'"):
        constrain(net, "gmp")
    assert traces(net) == before


def test_an_empty_batch_is_refused(net: Net) -> None:
    with pytest.raises(DataError, match="empty"):
        constrain(net, "lcw-data", batch=torch.zeros(0, 3, 6, 6))


def test_a_foreign_parametrization_on_top_is_not_baked(net: Net) -> None:
    constrain(net, "lcw", "head")
    parametrize.register_parametrization(net.head, "weight", nn.Identity())
    with pytest.raises(UsageError, match="2 parametrizations are stacked"):
        release(net)


def test_a_parametrized_bias_of_the_user_survives() -> None:
    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "bias", nn.Softplus())
    constrain(layer)
    release(layer)
    assert parametrize.is_parametrized(layer, "bias")
    assert not parametrize.is_parametrized(layer, "weight")


@pytest.mark.parametrize("method", METHODS)
def test_frozen_weights_stay_frozen(method: str) -> None:
    layer = nn.Linear(6, 3).requires_grad_(False)
    constrain(layer, method, **options(method, torch.rand(8, 6)))
    assert not any(p.requires_grad for p in layer.parameters())
    release(layer)
    assert isinstance(layer.weight, nn.Parameter)
    assert not layer.weight.requires_grad


def test_zero_padding_leaves_a_shift_that_other_padding_does_not() -> None:
    shift = {}
    for mode in ("zeros", "reflect", "circular"):
        torch.manual_seed(0)
        layer = nn.Conv2d(1, 8, 3, padding=1, padding_mode=mode, bias=False).double()
        constrain(layer)
        means = layer(torch.ones(1, 1, 6, 6).double()).detach().mean((0, 2, 3))
        shift[mode] = float(means.abs().max())
    assert shift["zeros"] > 1e-3
    assert max(shift["reflect"], shift["circular"]) < 1e-14


def test_public_names() -> None:
    assert ss.constrain is constrain
    assert ss.release is release
