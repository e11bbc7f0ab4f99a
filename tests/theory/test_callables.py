"""Callables as activations: kinks, derivatives and panels found by trial."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special

from shiftscope.errors import MeasureError, UsageError
from shiftscope.theory.activations import gains, stein_gap

FIELDS = ("mean", "variance", "mean_grad", "phi_fw", "phi_bw")
TORCH = {
    "elu": lambda z: torch.nn.functional.elu(z),
    "gelu": lambda z: torch.nn.functional.gelu(z),
    "hardshrink": lambda z: torch.nn.functional.hardshrink(z, 0.5),
    "hardtanh": lambda z: z.clamp(-1, 1),
    "relu": lambda z: z * (z > 0),
    "softsign": lambda z: z / (1 + z.abs()),
    "tanh": lambda z: torch.tanh(z),
}
NUMPY = {
    "hardswish": lambda z: z * np.clip(z + 3, 0, 6) / 6,
    "relu6": lambda z: np.clip(z, 0, 6),
    "silu": lambda z: z * special.expit(z),
    "tanh": np.tanh,
}


def worst(left: object, right: object) -> float:
    """The largest difference over all fields, relative where values exceed 1."""
    pairs = [(np.asarray(getattr(left, f)), np.asarray(getattr(right, f))) for f in FIELDS]
    return max(float(np.max(np.abs(a - b) / np.maximum(1.0, np.abs(b)))) for a, b in pairs)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("std", [1e-6, 0.3, 1.0, 40.0])
def test_torch_callables_meet_the_catalogue(name: str, std: float) -> None:
    mean = np.array([-3.0, -0.4, 0.0, 0.2, 1.0, 4.0])
    if name == "hardshrink" and std < 1e-3:
        mean = mean[:-1]  # f(z) - f(mean) keeps no digits where f jumped far away
        assert worst(gains(TORCH[name], mean, std), gains(name, mean, std)) < 1e-8
        return
    assert worst(gains(TORCH[name], mean, std), gains(name, mean, std)) < 1e-11


@pytest.mark.parametrize("name", NUMPY)
@pytest.mark.parametrize("std", [1e-6, 0.3, 1.0, 40.0])
def test_numpy_callables_meet_the_catalogue_without_a_derivative(name: str, std: float) -> None:
    mean = np.array([-3.3, -0.4, 0.0, 0.2, 1.0, 4.0])
    assert worst(gains(NUMPY[name], mean, std), gains(name, mean, std)) < 1e-11


def test_given_kinks_and_derivative_are_used() -> None:
    calls: list[int] = []

    def slope(z: np.ndarray) -> np.ndarray:
        calls.append(z.size)
        return (z > 1 / 3).astype(float)

    value = gains(lambda z: np.maximum(z - 1 / 3, 0), 0.1, kinks=[1 / 3], derivative=slope)
    shifted = gains("relu", 0.1 - 1 / 3)
    assert calls
    assert worst(value, shifted) < 1e-13


def test_a_module_of_the_user_is_measured_and_left_alone() -> None:
    class Bent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(0.25))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x > 0.7123, x - 0.7123, self.slope * (x - 0.7123))

    module = Bent()
    value = gains(module, 0.5, 2.0)
    assert worst(value, gains("leaky_relu", 0.5 - 0.7123, 2.0, negative_slope=0.25)) < 1e-11
    assert module.slope.dtype == torch.float32
    assert module.slope.requires_grad


def test_a_callable_obeys_stein() -> None:
    assert abs(stein_gap(lambda z: torch.sin(z) * torch.relu(z), 0.3, 1.1)) < 1e-11


def test_what_is_no_elementwise_function_is_refused() -> None:
    with pytest.raises(UsageError, match="depends on other points"):
        gains(lambda z: torch.softmax(z.flatten(), 0).reshape(z.shape))
    with pytest.raises(UsageError, match="maps shape"):
        gains(lambda z: z.sum())
    with pytest.raises(UsageError, match="derivative is not finite"):
        gains(lambda z: 1 / (1 + torch.exp(-z)), 0.0, 1000.0)
    with pytest.raises(UsageError, match="got <class 'int'>"):
        gains(3)


def test_what_cannot_be_resolved_is_reported() -> None:
    with pytest.raises(MeasureError, match="intervals do not resolve"):
        gains(lambda z: torch.sin(1000 * z), 0.0, 100.0)
