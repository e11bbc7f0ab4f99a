"""The networks, the digits and the training that demo, gallery and tests share."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import shiftscope as ss
from shiftscope.experiments import Labelled, digits, mlp, train


def test_every_digit_is_on_one_side() -> None:
    split = digits(seed=3, held_out=200)
    assert (len(split.training), len(split.held_out)) == (1597, 200)
    whole = torch.cat([split.training.x, split.held_out.x]).sum(1).sort().values
    again = digits(seed=4)
    other = torch.cat([again.training.x, again.held_out.x]).sum(1).sort().values
    assert torch.equal(whole, other)
    assert not torch.equal(again.held_out.x[:200], split.held_out.x)
    assert torch.equal(digits(seed=3, held_out=200).held_out.x, split.held_out.x)


@pytest.mark.parametrize("held_out", [0, 1797])
def test_no_side_is_empty(held_out: int) -> None:
    with pytest.raises(ss.UsageError, match="held_out"):
        digits(held_out=held_out)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ss.UsageError) as caught:
        digits()
    assert 'pip install "shiftscope[demo]"' in caught.value.remedy


def test_the_network_is_as_described() -> None:
    model = mlp(7, 30, 3, outputs=4, activation=nn.Tanh, dtype=torch.float64)
    maps = [m for m in model if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in maps] == [(7, 30), (30, 30), (30, 30), (30, 4)]
    assert [type(m) for m in model] == [nn.Linear, nn.Tanh] * 3 + [nn.Linear]
    for layer in maps:
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert layer.weight.dtype == torch.float64
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_seeds_decide_and_the_global_generator_does_not() -> None:
    state = torch.random.get_rng_state()
    first = mlp(5, 6, 2, seed=1)[0].weight
    torch.manual_seed(99)
    assert torch.equal(mlp(5, 6, 2, seed=1)[0].weight, first)
    assert not torch.equal(mlp(5, 6, 2, seed=2)[0].weight, first)
    torch.random.set_rng_state(state)


def test_networks_without_neurons_are_refused() -> None:
    with pytest.raises(ss.UsageError, match="at least 1"):
        mlp(5, 0, 2)


def test_training_is_plain_gradient_descent() -> None:
    """Against the update rule written out: L2 penalty, heavy ball, decaying rate."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    data = Labelled(x, torch.randint(2, (8,), generator=generator))
    model = mlp(3, 4, 1, outputs=2, dtype=torch.float64)
    weights = [p.detach().clone() for p in model.parameters()]
    moving = [torch.zeros_like(p) for p in weights]
    losses = train(model, data, 3, batch_size=8, lr=0.5, momentum=0.9, weight_decay=0.1, decay=0.5)
    for epoch in range(3):
        leaves = [p.requires_grad_() for p in weights]
        hidden = torch.sigmoid(data.x @ leaves[0].T + leaves[1])
        loss = nn.functional.cross_entropy(hidden @ leaves[2].T + leaves[3], data.y)
        assert losses[epoch] == pytest.approx(loss.item(), rel=1e-12)
        grads = torch.autograd.grad(loss, leaves)
        moving = [
            0.9 * m + g + 0.1 * p.detach() for m, g, p in zip(moving, grads, leaves, strict=True)
        ]
        weights = [p.detach() - 0.5 * 0.5**epoch * m for p, m in zip(leaves, moving, strict=True)]
    for ours, theirs in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-14)


def test_training_tells_its_progress_and_repeats() -> None:
    data = digits().held_out
    told: list[tuple[int, int]] = []

    def run() -> list[float]:
        return train(mlp(64, 8, 1), data, 2, seed=5, progress=lambda *step: told.append(step))

    assert run() == run()
    assert told == [(1, 2), (2, 2)] * 2
