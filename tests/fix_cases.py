"""Networks with data for tests of prescriptions: initialised ones and published checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from checkpoint_models import ReverseTransformer, TutorialResNet, sequences
from support import shared_path
from torch import Tensor, nn

from shiftscope.io import load_checkpoint, load_data, load_model

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pair:
    """A network, its data, the fix to predict, and whether the theory of gains covers it."""

    name: str
    make: Callable[[], tuple[nn.Module, Batches]]
    method: str = "lcw"
    theory: bool = True
    mode: str = "eval"
    rescale: bool = True


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The digits in a fixed random order, pixels in [0, 1]."""
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    return torch.tensor(bunch.data, dtype=torch.float32)[order] / 16, torch.tensor(bunch.target)[
        order
    ]


def batches(shape: tuple[int, ...] = (64,)) -> Batches:
    """Four batches of 256 digits."""
    x, y = digits()
    return [(x[i : i + 256].reshape(-1, *shape), y[i : i + 256]) for i in range(0, 1024, 256)]


def mlp(activation: type[nn.Module], depth: int = 6, width: int = 128) -> nn.Sequential:
    """PyTorch's default initialisation, as a user would start."""
    layers: list[nn.Module] = []
    for inputs in (64, *[width] * (depth - 1)):
        layers += [nn.Linear(inputs, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def _mlp(activation: type[nn.Module]) -> Callable[[], tuple[nn.Module, Batches]]:
    return lambda: (mlp(activation), batches())


def _cnn() -> tuple[nn.Module, Batches]:
    layers: list[nn.Module] = []
    for inputs in (1, 16, 16, 16):
        layers += [nn.Conv2d(inputs, 16, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 10))
    return net, batches((1, 8, 8))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)),
            *(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)  # type: ignore[no-any-return]


def _resnet() -> tuple[nn.Module, Batches]:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), *(_Block(16) for _ in range(3)), *head)
    return net, batches((1, 8, 8))


class _Encoder(nn.Module):
    """Rows of a digit as tokens through one pre-norm attention block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 64)
        self.block = nn.TransformerEncoderLayer(
            64, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)).mean(1))  # type: ignore[no-any-return]


def _transformer() -> tuple[nn.Module, Batches]:
    return _Encoder(), batches((8, 8))


def _sprite(file: str, spec: str) -> Callable[[], tuple[nn.Module, Batches]]:
    def make() -> tuple[nn.Module, Batches]:
        image = shared_path("data/fashion_sprite/fashion-mnist-sprite.png")
        return _loaded(file, spec, f"sprite:{image}:28x28:10", "half")

    return make


def _mnist(file: str, spec: str) -> Callable[[], tuple[nn.Module, Batches]]:
    return lambda: _loaded(file, spec, f"mnist:{shared_path('data/mnist')}", "none", 3)


def _loaded(
    file: str, spec: str, data: str, normalize: str, count: int | None = None
) -> tuple[nn.Module, Batches]:
    checkpoint = load_checkpoint(shared_path(f"checkpoints/{file}"))
    model = load_model(spec, checkpoint).model
    rows = load_data(data, batch_size=300, batches=count, normalize=normalize)
    return model, [(x, y) for x, y in rows]  # type: ignore[misc]


def _fitted(file: str, model: nn.Module) -> nn.Module:
    model.load_state_dict(load_checkpoint(shared_path(f"checkpoints/{file}")).state)
    return model.eval()


def _cifar(count: int = 2) -> Batches:
    normal = "0.49139968,0.48215841,0.44653091/0.24703223,0.24348513,0.26158784"
    data = f"cifar10:{shared_path('data/cifar10')}"
    rows = load_data(data, batch_size=64, batches=count, normalize=normal)
    return [(x, y) for x, y in rows]  # type: ignore[misc]


def _published_resnet() -> tuple[nn.Module, Batches]:
    return _fitted("uva_cifar_resnet.ckpt", TutorialResNet()), _cifar()


def _published_transformer() -> tuple[nn.Module, Batches]:
    net = _fitted("uva_transformer_reverse.ckpt", ReverseTransformer())
    ((x, y),) = sequences()
    return net, [(x[i : i + 100], y[i : i + 100]) for i in (0, 100, 200)]


def _sigmoid_cnn() -> tuple[nn.Module, Batches]:
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 4, 2), nn.Sigmoid(), nn.Conv2d(16, 32, 4, 2), nn.Sigmoid()),
        *(nn.Flatten(), nn.Linear(1152, 100), nn.Sigmoid(), nn.Linear(100, 10)),
    )
    return _fitted("cifar_conv_small_sigmoid.pth", net), _cifar()


PAIRS = (
    Pair("sigmoid MLP", _mlp(nn.Sigmoid)),
    Pair("tanh MLP", _mlp(nn.Tanh)),
    Pair("ReLU MLP", _mlp(nn.ReLU)),
    Pair("GELU MLP", _mlp(nn.GELU)),
    Pair("sigmoid MLP, data-aware", _mlp(nn.Sigmoid), "lcw-data"),
    Pair("ReLU MLP, data-aware", _mlp(nn.ReLU), "lcw-data"),
    Pair("sigmoid MLP, standardized", _mlp(nn.Sigmoid), "standardize", rescale=False),
    Pair("convolutions", _cnn),
    Pair("residual, batch norm", _resnet, theory=False, mode="train"),
    Pair("transformer block", _transformer, theory=False),
    Pair("published sigmoid MLP", _sprite("uva_mlp_fashion_sigmoid.tar", "mlp:sigmoid")),
    Pair("published ReLU MLP", _sprite("uva_mlp_fashion_relu.tar", "mlp:relu"), theory=False),
    Pair("published tanh MLP", _sprite("uva_mlp_fashion_tanh.tar", "mlp:tanh"), theory=False),
    Pair("published deep MLP", _mnist("mnist_6_100.pth", "mlp:relu"), theory=False),
    Pair("published residual net", _published_resnet, theory=False),
    Pair("published transformer", _published_transformer, "lcw-data", theory=False),
    Pair("published convolutions", _sigmoid_cnn, theory=False, rescale=False),
)
