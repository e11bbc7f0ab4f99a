"""Gram matrices from per-sample gradients: explicit loops, the layer's closed form, blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from shiftscope.errors import DataError, UsageError
from shiftscope.theory.gram import layer_g_matrix
from shiftscope.theory.jacobian_gram import jacobian_g_matrix


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.Sigmoid(),
        nn.Conv2d(3, 2, 3, stride=2),
        nn.Flatten(),
        nn.Linear(8, 1),
    ).eval()


def _loops(model: nn.Module, x: torch.Tensor, names: list[str]) -> np.ndarray:
    """One backward pass per sample, everything stored."""
    model = model.double()
    rows = []
    for sample in x.double():
        wanted = [dict(model.named_parameters())[name] for name in names]
        grads = torch.autograd.grad(model(sample[None]).sum(), wanted)
        rows.append(torch.cat([g.flatten() for g in grads]).numpy())
    return np.stack(rows) @ np.stack(rows).T


@pytest.mark.parametrize(
    "names", [["0.weight"], ["3.weight", "3.bias"], ["0.weight", "1.weight", "5.bias"]]
)
@pytest.mark.parametrize("memory", [1 << 30, 20_000])
def test_convolutions_against_one_backward_pass_per_sample(names: list[str], memory: int) -> None:
    x = torch.randn(7, 2, 5, 5)
    got = jacobian_g_matrix(_network(), x, names, memory=memory)
    np.testing.assert_allclose(got.values, _loops(_network(), x, names), rtol=1e-10, atol=1e-12)
    known = dict(_network().named_parameters())
    assert got.parameters == sum(known[name].numel() for name in names)


def test_a_linear_layer_is_the_closed_form_without_the_width() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 1))
    x = torch.randn(6, 4)
    got = jacobian_g_matrix(model, x, ["0.weight", "0.bias"])
    wanted = layer_g_matrix(
        x,
        model[0].weight.detach(),
        "tanh",
        model[0].bias.detach(),
        factors=model[2].weight.detach().numpy()[0],
        train_bias=True,
    )
    np.testing.assert_allclose(got.values / 9, wanted.values, rtol=1e-10)
    assert got.parameters == wanted.parameters


def test_head_chooses_the_output() -> None:
    torch.manual_seed(2)
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    got = jacobian_g_matrix(model, x, "weight", head=lambda y: y[0, 1])
    np.testing.assert_allclose(got.values, (x.double() @ x.double().T).numpy(), rtol=1e-12)
    with pytest.raises(UsageError, match="one number per sample"):
        jacobian_g_matrix(model, x, "weight")


def test_the_model_is_left_alone() -> None:
    model = _network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    identities = [id(p) for p in model.parameters()]
    jacobian_g_matrix(model, torch.randn(3, 2, 5, 5))
    assert identities == [id(p) for p in model.parameters()]
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_more_samples_than_parameters() -> None:
    got = jacobian_g_matrix(nn.Linear(3, 1), torch.randn(5, 3), "weight").spectrum()
    assert got.singular


def test_wrong_arguments_are_refused() -> None:
    x = torch.randn(3, 2, 5, 5)
    with pytest.raises(UsageError, match="no parameter 'weight'"):
        jacobian_g_matrix(_network(), x, "weight")
    with pytest.raises(UsageError, match="no parameter is trained"):
        jacobian_g_matrix(nn.ReLU(), x)
    with pytest.raises(UsageError, match=r"1 \(BatchNorm2d\) is in training mode"):
        jacobian_g_matrix(_network().train(), x)
    with pytest.raises(DataError, match="not finite"):
        jacobian_g_matrix(_network(), x * torch.inf)
