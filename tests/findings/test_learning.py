"""Networks that do not learn, or that did: fresh and trained weights, published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from finding_cases import (
    data,
    linears,
)
from standin import measure, mlp
from support import shared_path
from torch import Tensor, nn

from shiftscope.findings import Finding, diagnose
from shiftscope.findings.learning import initial_spread


def test_untouched_weights_are_a_remark_until_something_blocks_learning() -> None:
    fresh = mlp([64, 64, 64, 10], nn.ReLU)
    x, y = data(width=64)
    findings = {f.cause: f for f in diagnose(measure(fresh, x, y, accuracy=0.1, loss=2.3026))}
    assert findings["not_learning"].severity == "info"
    blocked = mlp([64] * 8 + [10], nn.Sigmoid)
    findings = {f.cause: f for f in diagnose(measure(blocked, x, y, accuracy=0.1, loss=2.3026))}
    assert findings["not_learning"].severity == "serious"
    assert findings["not_learning"].follows_from == "activation_shift"
    findings = {f.cause: f for f in diagnose(measure(blocked, x, y, accuracy=0.9, loss=0.1))}
    assert findings["not_learning"].severity == "info"


def test_trained_weights_at_chance_point_at_the_data() -> None:
    x, y = data(width=64)
    fresh, trained = (mlp([64, 64, 64, 10], nn.ReLU) for _ in range(2))
    with torch.no_grad():
        for layer in linears(fresh):
            nn.init.kaiming_normal_(layer.weight)
        trained[0].weight *= torch.linspace(0.5, 2, 64)[:, None]
    told = {f.cause: f for f in diagnose(measure(trained, x, y, accuracy=0.1))}
    assert told["not_learning"].severity == "watch"
    assert "inputs" in told["not_learning"].advice
    assert told["not_learning"].follows_from == ""
    for model, accuracy in ((fresh, 0.1), (trained, 0.9)):
        causes = {f.cause for f in diagnose(measure(model, x, y, accuracy=accuracy))}
        assert "not_learning" not in causes


def test_one_trained_layer_is_enough_to_count_as_touched() -> None:
    model = mlp([64, 64, 64, 10], nn.ReLU)
    with torch.no_grad():
        model[2].weight += 0.05 * torch.randn(64, 64, dtype=torch.float64)
    x, y = data(width=64)
    assert "not_learning" not in {f.cause for f in diagnose(measure(model, x, y))}


def test_a_head_of_zeros_is_judged_without_a_warning() -> None:
    model = mlp([64, 64, 10], nn.ReLU)
    nn.init.zeros_(model[2].weight)
    x, y = data(width=64)
    assert "not_learning" not in {f.cause for f in diagnose(measure(model, x, y))}


def test_the_spread_of_row_norms_is_one_at_initialisation() -> None:
    rng = np.random.default_rng(0)
    weights = rng.uniform(-1, 1, (20000, 50)) / math.sqrt(50)
    assert initial_spread((weights**2).sum(1), 50) == pytest.approx(1.0, abs=5 * 0.01)


# -- published checkpoints -------------------------------------------------------------------------


def sprite() -> tuple[Tensor, Tensor]:
    image = pytest.importorskip("PIL.Image")
    path: Path = shared_path("data/fashion_sprite/fashion-mnist-sprite.png")
    pixels = np.asarray(image.open(path).convert("L"), dtype=np.float64)
    tiles = pixels.reshape(30, 28, 30, 28).transpose(0, 2, 1, 3).reshape(900, 784)
    return torch.from_numpy(tiles / 127.5 - 1), torch.arange(10).repeat_interleave(90)


@pytest.fixture(scope="module")
def fashion() -> Callable[[str, type[nn.Module]], list[Finding]]:
    x, y = sprite()

    def diagnosed(name: str, activation: type[nn.Module]) -> list[Finding]:
        model = mlp([784, 512, 256, 256, 128, 10], activation)
        path = shared_path(f"checkpoints/uva_mlp_fashion_{name}.tar")
        state = torch.load(path, weights_only=True, map_location="cpu")
        model.load_state_dict({key.removeprefix("layers."): w for key, w in state.items()})
        with torch.no_grad():
            accuracy = float((model(x).argmax(1) == y).double().mean())
        return diagnose(measure(model, x, y, accuracy=accuracy))

    return diagnosed


def test_the_checkpoint_that_never_learned_is_explained(
    fashion: Callable[[str, type[nn.Module]], list[Finding]],
) -> None:
    findings = fashion("sigmoid", nn.Sigmoid)
    assert (findings[0].cause, findings[0].severity) == ("activation_shift", "critical")
    assert float(findings[0].evidence["gradient_decay"].value) == pytest.approx(5.1, abs=0.2)
    by_cause = {finding.cause: finding for finding in findings}
    assert by_cause["not_learning"].severity == "serious"
    assert float(by_cause["not_learning"].evidence["accuracy"].value) == pytest.approx(0.1)


@pytest.mark.parametrize(("name", "activation"), [("relu", nn.ReLU), ("tanh", nn.Tanh)])
def test_its_healthy_siblings_have_no_finding(
    fashion: Callable[[str, type[nn.Module]], list[Finding]],
    name: str,
    activation: type[nn.Module],
) -> None:
    assert [finding.cause for finding in fashion(name, activation)] == []
