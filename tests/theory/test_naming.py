"""Names and parameters of activations as they are met in models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shiftscope.theory.activations import canonical, gains, known

MODULES = [
    nn.CELU(2.0), nn.ELU(0.5), nn.GELU(), nn.GELU("tanh"), nn.Hardshrink(0.3), nn.Hardsigmoid(),
    nn.Hardswish(), nn.Hardtanh(-2.0, 0.5), nn.Identity(), nn.LeakyReLU(0.3), nn.LogSigmoid(),
    nn.Mish(), nn.PReLU(init=0.1), nn.ReLU(), nn.ReLU6(), nn.RReLU(), nn.SELU(), nn.SiLU(),
    nn.Sigmoid(), nn.Softplus(2.0), nn.Softshrink(0.2), nn.Softsign(), nn.Tanh(), nn.Tanhshrink(),
    nn.Threshold(0.5, 0.1),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_every_torch_module_computes_what_the_catalogue_says(module: nn.Module) -> None:
    from shiftscope.theory import catalogue

    named = canonical(module)
    assert named is not None
    assert named.name in known()
    function = catalogue.find(named.name, named.parameters)
    z = np.linspace(-8.0, 8.0, 401) + 0.00317
    module = module.double().eval()
    leaf = torch.from_numpy(z).requires_grad_()
    out = module(leaf)
    (slope,) = torch.autograd.grad(out.sum(), leaf)
    np.testing.assert_allclose(function.value(z), out.detach().numpy(), rtol=1e-7, atol=1e-8)
    # torch's float64 hardsigmoid carries a single-precision 1/6 in its gradient.
    np.testing.assert_allclose(function.derivative(z), slope.numpy(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "args", "kwargs", "expected"),
    [
        (F.relu, (True,), {}, ("relu", {})),
        (torch.relu_, (), {}, ("relu", {})),
        (torch.Tensor.tanh_, (), {}, ("tanh", {})),
        (torch.ops.aten.relu.default, (), {}, ("relu", {})),
        (F.leaky_relu, (0.2,), {"inplace": True}, ("leaky_relu", {"negative_slope": 0.2})),
        (F.gelu, (), {"approximate": "tanh"}, ("gelu_tanh", {})),
        (F.hardtanh, (-2, 2), {}, ("hardtanh", {"min_val": -2.0, "max_val": 2.0})),
        (torch.clamp, (), {"min": 0}, ("hardtanh", {"min_val": 0.0, "max_val": float("inf")})),
        (torch.special.expit, (), {}, ("sigmoid", {})),
    ],
)
def test_function_calls_are_named_with_their_arguments(
    call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], expected: tuple[str, dict[str, float]]
) -> None:
    assert canonical(call, *args, **kwargs) == expected


@pytest.mark.parametrize(
    "other", [nn.Softmax(), nn.GLU(), nn.Linear(2, 2), F.linear, F.glu, torch.clamp, len, "unknown"]
)
def test_what_the_catalogue_lacks_is_none(other: Any) -> None:
    assert canonical(other) is None


def test_a_subclass_with_its_own_forward_is_not_its_parent() -> None:
    class Odd(nn.ReLU):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return torch.relu(input) - 0.5

    class Plain(nn.ReLU):
        pass

    assert canonical(Odd()) is None
    assert canonical(Plain()) == ("relu", {})
    assert gains(Odd()).mean == pytest.approx(gains("relu").mean - 0.5, abs=1e-12)


def test_modules_classes_and_functions_give_the_same_gains() -> None:
    values = {gains(a).phi_fw for a in ("silu", nn.SiLU, nn.SiLU(), F.silu)}
    assert len(values) == 1
    per_channel = gains(nn.PReLU(3), 0.5, 2.0)
    assert per_channel.phi_fw.shape == (3,)
