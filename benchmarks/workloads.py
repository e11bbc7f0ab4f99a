"""The training steps that measuring is timed on: mlp, gpt, resnet, tiny, and wide ones for CUDA.

* ``mlp``: 50 hidden layers of 256 sigmoid units on 3072 inputs, batch 128. Its rows are centred and
  rescaled on one batch (Kutsuna, ECML-PKDD 2019, Sections 3 and 4.3): with torch's default weights
  its gradients would be denormal numbers, whose arithmetic is slow on some processors and would be
  timed in place of the recording.
* ``gpt``: a decoder of 6 layers, width 256, 8 heads, 128 tokens, batch 8, vocabulary 512.
* ``resnet``: ResNet-18 as used for CIFAR (3 x 3 stem, no pooling), batch 32.
* ``wide``: 4 hidden layers of 4096 GELU units, batch 8192; for CUDA: its streams do not fit into
  the second-level cache of a GPU.
* ``wide large``: 2 hidden layers of 8192 units, batch 32768; for bfloat16.
* ``tiny``: 50 hidden layers of 8 sigmoid units, batch 4: nothing but what the host does.
* ``gpt large`` and ``resnet large``: such networks as they are trained on a GPU, whose kernels
  keep it busy: 8 layers of width 1024, 16 heads, 1024 tokens, batch 8; ResNet-18, batch 1024.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shiftscope as ss

__all__ = ["NAMES", "Workload", "build"]

NAMES = ("mlp", "gpt", "resnet", "tiny", "wide", "wide large", "gpt large", "resnet large")


@dataclass
class Workload:
    """A model with its optimizer and one batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    x: Tensor
    y: Tensor

    def forward(self) -> Tensor:
        """The loss; gradients of the step before are dropped."""
        self.optimizer.zero_grad(set_to_none=True)
        out = self.model(self.x)
        return F.cross_entropy(out.flatten(0, -2), self.y.flatten())

    def step(self) -> None:
        """One update."""
        self.forward().backward()
        self.optimizer.step()


def build(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Workload:
    """The workload of that name, the same each time."""
    torch.manual_seed(0)
    model, x, y = _MAKERS[name]()
    model, x, y = model.to(device, dtype), x.to(device), y.to(device)
    if x.is_floating_point():
        x = x.to(dtype)
    return Workload(model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), x, y)


def _mlp() -> tuple[nn.Module, Tensor, Tensor]:
    layers: list[nn.Module] = []
    for inputs in (3072, *[256] * 49):
        layers += [nn.Linear(inputs, 256), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(256, 10))
    x = torch.randn(128, 3072)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight -= layer.weight.mean(dim=1, keepdim=True)
                layer.bias.zero_()
    ss.rescale_(model, x)
    return model, x, torch.randint(10, (128,))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.act, self.down = (
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).view(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return x + self.down(self.act(self.up(self.norm2(x))))


class _Gpt(nn.Module):
    def __init__(
        self,
        layers: int = 6,
        vocabulary: int = 512,
        width: int = 256,
        tokens: int = 128,
        heads: int = 8,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


def _gpt() -> tuple[nn.Module, Tensor, Tensor]:
    ids = torch.randint(512, (8, 129))
    return _Gpt(), ids[:, :-1], ids[:, 1:]


def _gpt_large() -> tuple[nn.Module, Tensor, Tensor]:
    ids = torch.randint(512, (8, 1025))
    return _Gpt(8, width=1024, tokens=1024, heads=16), ids[:, :-1], ids[:, 1:]


class _Residual(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and inputs == width
        self.skip: nn.Module = (
            nn.Identity() if same else nn.Conv2d(inputs, width, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.skip(x)
        result: Tensor = self.relu(out)
        return result


def _resnet(batch: int = 32) -> tuple[nn.Module, Tensor, Tensor]:
    blocks: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [_Residual(inputs, width, stride), _Residual(width, width, 1)]
        inputs = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*blocks, *head), torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))


def _wide(depth: int = 4, width: int = 4096, batch: int = 8192) -> tuple[nn.Module, Tensor, Tensor]:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.GELU()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    return model, torch.randn(batch, width), torch.randint(10, (batch,))


def _tiny() -> tuple[nn.Module, Tensor, Tensor]:
    layers = [layer for _ in range(50) for layer in (nn.Linear(8, 8), nn.Sigmoid())]
    return nn.Sequential(*layers), torch.randn(4, 8), torch.randint(8, (4,))


_MAKERS: dict[str, Callable[[], tuple[nn.Module, Any, Any]]] = {
    "mlp": _mlp,
    "gpt": _gpt,
    "resnet": _resnet,
    "tiny": _tiny,
    "wide": _wide,
    "wide large": partial(_wide, 2, 8192, 32768),
    "gpt large": _gpt_large,
    "resnet large": partial(_resnet, 1024),
}
