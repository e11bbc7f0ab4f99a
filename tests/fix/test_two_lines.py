"""A sigmoid network of fifty layers on images of digits: two lines in the user's script."""

from __future__ import annotations

import pytest
import torch
from fix_cases import digits, mlp
from torch import nn
from torch.nn import functional as F

import shiftscope as ss

EPOCHS = 4


def train(fixed: bool, seed: int) -> tuple[float, float]:
    """Mean loss of the last epoch, and accuracy on 360 images kept apart."""
    torch.manual_seed(seed)
    x, y = digits()
    model = mlp(nn.Sigmoid, depth=50)
    if fixed:
        ss.constrain(model, "lcw")
        ss.rescale_(model, x[:256])
    sgd = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    losses: list[float] = []
    for _ in range(EPOCHS):
        losses = []
        for rows in torch.randperm(1437).split(64):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses.append(float(loss.detach()))
    with torch.no_grad():
        accuracy = (model(x[1437:]).argmax(1) == y[1437:]).float().mean()
    return sum(losses) / len(losses), float(accuracy)


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_fifty_layers_learn_with_them_and_not_without(seed: int) -> None:
    loss, accuracy = train(fixed=False, seed=seed)
    assert loss > 2.25
    assert accuracy < 0.2
    loss, accuracy = train(fixed=True, seed=seed)
    assert loss < 1.0
    assert accuracy > 0.7


def test_the_prescription_names_the_two_lines_and_foresees_the_gradient() -> None:
    torch.manual_seed(0)
    x, y = digits()
    told = ss.prescribe(
        mlp(nn.Sigmoid, depth=50), [(x[:256], y[:256])], F.cross_entropy, methods=["lcw"]
    )[0]
    assert told.code.splitlines() == ['ss.constrain(model, "lcw")', "ss.rescale_(model, batch)"]
    assert told.gradient.decades_before < -30 or not told.gradient.before > 0
    assert abs(told.gradient.decades_after) < 2
    assert told.helps
