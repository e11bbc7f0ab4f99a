"""Linear layers whose weight lies ``(inputs, outputs)``: the ``Conv1D`` of Hugging Face's GPT-2."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.fix.constrain import METHODS, constrain, release

pytorch_utils = pytest.importorskip("transformers.pytorch_utils")


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    """The same network with its weights either way round."""
    torch.manual_seed(0)
    usual = nn.Sequential(nn.Linear(7, 6), nn.Sigmoid(), nn.Linear(6, 5))
    turned = nn.Sequential(pytorch_utils.Conv1D(6, 7), nn.Sigmoid(), pytorch_utils.Conv1D(5, 6))
    for own, other in zip(usual, turned, strict=True):
        if isinstance(own, nn.Linear):
            other.weight.data.copy_(own.weight.data.t())
            other.bias.data.copy_(own.bias.data)
    return usual, turned


def batch() -> Tensor:
    return torch.rand(32, 7, generator=torch.Generator().manual_seed(1))


def weight_of(layer: Any) -> Tensor:
    weight: Tensor = layer.weight.detach()
    return weight


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"spectral_norm"}))
def test_constraints_are_those_of_the_transposed_weight(method: str) -> None:
    usual, turned = pair()
    options = {"batch": batch()} if method == "lcw-data" else {}
    for model in (usual, turned):
        constrain(model, method, **options)
    for k in (0, 2):
        torch.testing.assert_close(weight_of(turned[k]), weight_of(usual[k]).t())
    torch.testing.assert_close(turned(batch()), usual(batch()))
    turned(batch()).sum().backward()
    released = [weight_of(turned[k]).clone() for k in (0, 2)]
    release(turned)
    for k, before in zip((0, 2), released, strict=True):
        torch.testing.assert_close(weight_of(turned[k]), before)


def test_rows_sum_to_zero_and_the_spectral_norm_is_one() -> None:
    _, turned = pair()
    ss.constrain(turned)
    torch.testing.assert_close(weight_of(turned[0]).sum(0), torch.zeros(6), atol=1e-6, rtol=0)
    ss.release(turned)
    ss.constrain(turned, "spectral_norm")
    for _ in range(50):
        turned(batch())
    assert torch.linalg.matrix_norm(weight_of(turned[0]), 2).item() == pytest.approx(1, rel=1e-3)


def test_rescaled_like_any_other_layer() -> None:
    usual, turned = pair()
    for model in (usual, turned):
        ss.rescale_(model, batch())
    for k in (0, 2):
        torch.testing.assert_close(weight_of(turned[k]), weight_of(usual[k]).t())


def test_a_small_gpt2_is_constrained_and_measured() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(20, (4, 8))
    ss.constrain(model, sites=["*.c_fc"])
    snapshot = ss.analyze(model, [{"input_ids": ids}])
    weights = snapshot.records["transformer.h.0.mlp.c_fc"].weights
    assert weights is not None
    assert abs(weights.row_sum).max() < 1e-5
    assert weights.norm2.min() > 0
