"""Every published checkpoint loads right, or is refused for the right reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import shared_path

from shiftscope.errors import LoadError
from shiftscope.io import Checkpoint, load_checkpoint, load_data, load_model

EXPECTED: dict[str, tuple[str, str, int, str]] = {
    # file: format, wrapping, parameters, first name
    "akamaster_resnet20.th": (
        "torch legacy stream",
        "dict['state_dict'] → prefix 'module.'",
        271_098,
        "conv1.weight",
    ),
    "akamaster_resnet32.th": (
        "torch legacy stream",
        "dict['state_dict'] → prefix 'module.'",
        466_426,
        "conv1.weight",
    ),
    "uva_mlp_fashion_relu.tar": ("torch legacy stream", "", 633_226, "layers.0.weight"),
    "uva_mlp_fashion_sigmoid.tar": ("torch legacy stream", "", 633_226, "layers.0.weight"),
    "uva_mlp_fashion_tanh.tar": ("torch legacy stream", "", 633_226, "layers.0.weight"),
    "uva_cifar_googlenet.ckpt": (
        "Lightning 1.0.2, torch legacy stream",
        "dict['state_dict'] → prefix 'model.'",
        263_323,
        "input_net.0.weight",
    ),
    "uva_cifar_resnet.ckpt": (
        "Lightning 1.0.2, torch legacy stream",
        "dict['state_dict'] → prefix 'model.'",
        273_773,
        "input_net.0.weight",
    ),
    "uva_transformer_reverse.ckpt": (
        "Lightning 1.0.2, torch legacy stream",
        "dict['state_dict']",
        10_346,
        "input_net.1.weight",
    ),
    "uva_autoencoder_64.ckpt": (
        "Lightning 0.9.0, torch zip",
        "dict['state_dict']",
        337_091,
        "encoder.net.0.weight",
    ),
    "mnist_6_100.pth": ("torch zip", "dict['state_dict'] → list[0]", 119_910, "1.weight"),
    "mnist_9_200.pth": ("torch zip", "dict['state_dict'] → list[0]", 440_410, "1.weight"),
    "cifar_conv_small_sigmoid.pth": ("torch zip", "dict['state_dict']", 125_318, "0.weight"),
    "cifar_base.pth": ("torch legacy stream", "dict['state_dict'] → list[0]", 105_966, "0.weight"),
    "ppo_lunarlander.pth": ("torch zip", "", 9_797, "actor.0.weight"),
    "ppo_cartpole.pth": ("torch zip", "", 9_155, "actor.0.weight"),
}


def load(name: str) -> Checkpoint:
    return load_checkpoint(shared_path(f"checkpoints/{name}"))


@pytest.mark.parametrize("name", EXPECTED)
def test_format_wrapping_and_size(name: str) -> None:
    checkpoint = load(name)
    kind, wrapping, parameters, first = EXPECTED[name]
    found = checkpoint.format, checkpoint.wrapping, checkpoint.parameters
    assert found == (kind, wrapping, parameters)
    assert next(iter(checkpoint.state)) == first
    assert all(tensor.device.type == "cpu" for tensor in checkpoint.state.values())


def test_every_file_of_the_manifest_is_expected_here() -> None:
    manifest = json.loads(shared_path("checkpoints/MANIFEST.json").read_text())
    assert {entry["file"] for entry in manifest} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"uva_autoencoder_64.ckpt"}))
def test_weights_equal_those_of_torch_load(name: str) -> None:
    content: Any = torch.load(
        shared_path(f"checkpoints/{name}"), map_location="cpu", weights_only=True
    )
    content = content.get("state_dict", content)
    content = content[0] if isinstance(content, list) else content
    state = load(name).state
    assert len(state) == len(content)
    for mine, (key, theirs) in zip(state.items(), content.items(), strict=True):
        assert key.removeprefix("module.").removeprefix("model.") == mine[0]
        assert torch.equal(mine[1], theirs)


def test_what_stands_beside_the_weights_is_kept() -> None:
    assert load("akamaster_resnet20.th").extras["best_prec1"] == pytest.approx(91.78, abs=1e-3)
    assert load("mnist_6_100.pth").extras["acc"] == 960
    googlenet = load("uva_cifar_googlenet.ckpt")
    assert googlenet.extras["hyper_parameters"]["model_name"] == "GoogleNet"
    assert "state_dict" not in googlenet.extras
    autoencoder = load("uva_autoencoder_64.ckpt")
    assert autoencoder.extras["hyper_parameters"]["latent_dim"] == 64
    assert load("ppo_cartpole.pth").extras == {}


def test_lfs_pointer_is_refused_with_the_command_that_helps() -> None:
    with pytest.raises(LoadError, match="LFS pointer") as caught:
        load("lfs_pointer.bin")
    assert "git lfs pull" in caught.value.remedy


SPRITE = "data/fashion_sprite/fashion-mnist-sprite.png"
FASHION = [("relu", 856), ("tanh", 811), ("sigmoid", 90)]


@pytest.mark.parametrize(("activation", "right"), FASHION)
def test_fashion_mlps_reach_their_published_accuracy(activation: str, right: int) -> None:
    data = load_data(f"sprite:{shared_path(SPRITE)}:28x28:10", normalize="half")
    loaded = load_model(f"mlp:{activation}", load(f"uva_mlp_fashion_{activation}.tar"))
    assert data.rows == 900
    assert count_right(loaded.model, data) == right


@pytest.mark.parametrize(("name", "right"), [("mnist_6_100.pth", 9629), ("mnist_9_200.pth", 9495)])
def test_mnist_mlps_reach_their_published_accuracy(name: str, right: int) -> None:
    data = load_data(f"mnist:{shared_path('data/mnist')}", batch_size=1000)
    assert count_right(load_model("mlp:relu", load(name)).model, data) == right


def test_cifar_conv_reaches_its_accuracy_through_a_model_file(tmp_path: Path) -> None:
    (tmp_path / "conv.py").write_text(
        "from torch.nn import *\n"
        "def net():\n"
        "    return Sequential(Conv2d(3, 16, 4, 2), Sigmoid(), Conv2d(16, 32, 4, 2), Sigmoid(),\n"
        "        Flatten(), Linear(1152, 100), Sigmoid(), Linear(100, 10))\n"
    )
    data = load_data(
        f"cifar10:{shared_path('data/cifar10')}",
        normalize="0.4914,0.4822,0.4465/0.2023,0.1994,0.2010",
    )
    loaded = load_model("conv.py:net", load("cifar_conv_small_sigmoid.pth"), base=tmp_path)
    assert count_right(loaded.model, data) / 932 == pytest.approx(0.6513, abs=1e-3)


def test_two_networks_in_one_file_are_told_apart() -> None:
    checkpoint = load("ppo_lunarlander.pth")
    with pytest.raises(LoadError, match="not one MLP") as caught:
        load_model("mlp:tanh", checkpoint)
    assert "actor, critic" in caught.value.remedy
    critic = load_model("mlp:tanh@critic", checkpoint)
    assert critic.description == "MLP 8-64-64-1, tanh"
    assert critic.report == ("6 tensors outside of 'critic' left out, as asked",)


@torch.no_grad()
def count_right(model: torch.nn.Module, data: Any) -> int:
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in data)
