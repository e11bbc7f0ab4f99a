"""The architectures of published checkpoints, written from their descriptions, and their data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from support import shared_path
from torch import Tensor, nn


class CifarBlock(nn.Module):
    """Two convolutions; the shortcut subsamples and pads channels with zeros, without weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        missing = out.shape[1] - x.shape[1]
        if missing:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, missing // 2, missing // 2))
        out += x
        return F.relu(out)


class CifarResNet(nn.Module):
    """ResNet for CIFAR (He et al. 2015) with functional ReLUs."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            sizes = [widths[stage - 1], *[widths[stage]] * blocks]
            pairs = pairwise(sizes)
            setattr(self, f"layer{stage}", nn.Sequential(*(CifarBlock(i, o) for i, o in pairs)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def resnet20() -> nn.Module:
    return CifarResNet(3)


def resnet32() -> nn.Module:
    return CifarResNet(5)


class TutorialBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.net = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.downsample = nn.Conv2d(inputs, outputs, 1, 2) if stride == 2 else None
        self.act_fn = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.act_fn(self.net(x) + shortcut)  # type: ignore[no-any-return]


def pooled_head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class TutorialResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_net = nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        sizes = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        pairs = pairwise(sizes)
        self.blocks = nn.Sequential(*(TutorialBlock(i, o) for i, o in pairs))
        self.output_net = pooled_head(64)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_net(self.blocks(self.input_net(x)))  # type: ignore[no-any-return]


def conv_norm(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, padding=size // 2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


class Inception(nn.Module):
    def __init__(self, inputs: int, reduced: tuple[int, int], outputs: tuple[int, ...]) -> None:
        super().__init__()
        one, three, five, pool = outputs
        self.conv_1x1 = nn.Sequential(*conv_norm(inputs, one, 1))
        self.conv_3x3 = nn.Sequential(
            *conv_norm(inputs, reduced[0], 1), *conv_norm(reduced[0], three, 3)
        )
        self.conv_5x5 = nn.Sequential(
            *conv_norm(inputs, reduced[1], 1), *conv_norm(reduced[1], five, 5)
        )
        self.max_pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), *conv_norm(inputs, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.conv_1x1, self.conv_3x3, self.conv_5x5, self.max_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)


class GoogleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_net = nn.Sequential(*conv_norm(3, 64, 3))
        self.inception_blocks = nn.Sequential(
            Inception(64, (32, 16), (16, 32, 8, 8)),
            Inception(64, (32, 16), (24, 48, 12, 12)),
            nn.MaxPool2d(3, 2, 1),
            Inception(96, (32, 16), (24, 48, 12, 12)),
            Inception(96, (32, 16), (16, 48, 16, 16)),
            Inception(96, (32, 16), (16, 48, 16, 16)),
            Inception(96, (32, 16), (32, 48, 24, 24)),
            nn.MaxPool2d(3, 2, 1),
            Inception(128, (48, 16), (32, 64, 16, 16)),
            Inception(128, (48, 16), (32, 64, 16, 16)),
        )
        self.output_net = pooled_head(128)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_net(self.inception_blocks(self.input_net(x)))  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv_proj, self.o_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv_proj(x).chunk(3, dim=-1)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return self.o_proj(weights @ v)  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width)
        self.linear_net = nn.Sequential(
            nn.Linear(width, inner), nn.Dropout(0.0), nn.ReLU(), nn.Linear(inner, width)
        )
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear_net(x))  # type: ignore[no-any-return]


class ReverseTransformer(nn.Module):
    """One post-norm encoder layer that reverses a sequence of sixteen one-hot digits."""

    def __init__(self) -> None:
        super().__init__()
        self.input_net = nn.Sequential(nn.Dropout(0.0), nn.Linear(10, 32))
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList([EncoderLayer(32, 64)])
        self.output_net = nn.Sequential(
            *(nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU(), nn.Dropout(0.0), nn.Linear(32, 10))
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.input_net(x)
        place = torch.arange(h.shape[1], dtype=h.dtype).unsqueeze(1)
        rate = torch.exp(torch.arange(0, 32, 2, dtype=h.dtype) * (-math.log(10000.0) / 32))
        h = h + torch.stack([(place * rate).sin(), (place * rate).cos()], dim=-1).flatten(1)
        for layer in self.transformer.layers:  # type: ignore[union-attr]
            h = layer(h)
        # Classes in dimension 1, as cross entropy wants them.
        return self.output_net(h).transpose(1, 2)  # type: ignore[no-any-return]


class _Sequences:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        digits = torch.randint(0, 10, (500, 16), generator=torch.Generator().manual_seed(1))
        yield F.one_hot(digits, 10).float(), digits.flip(1)

    def __len__(self) -> int:
        return 1


def sequences() -> _Sequences:
    return _Sequences()


def reconstruction() -> list[tuple[Tensor, Tensor]]:
    """Images as their own targets."""
    pixels = np.load(shared_path("data/cifar10/cifar10_exact.npz"))["x_test"][:128]
    x = torch.from_numpy(pixels).float() / 127.5 - 1
    return [(x, x)]


class AutoEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        act = nn.GELU
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.net = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 2, 1), act(), nn.Conv2d(32, 32, 3, 1, 1), act()),
            *(nn.Conv2d(32, 64, 3, 2, 1), act(), nn.Conv2d(64, 64, 3, 1, 1), act()),
            *(nn.Conv2d(64, 64, 3, 2, 1), act(), nn.Flatten(), nn.Linear(1024, 64)),
        )
        self.decoder.linear = nn.Sequential(nn.Linear(64, 1024), act())
        self.decoder.net = nn.Sequential(
            *(nn.ConvTranspose2d(64, 64, 3, 2, 1, 1), act(), nn.Conv2d(64, 64, 3, 1, 1), act()),
            *(nn.ConvTranspose2d(64, 32, 3, 2, 1, 1), act(), nn.Conv2d(32, 32, 3, 1, 1), act()),
            *(nn.ConvTranspose2d(32, 3, 3, 2, 1, 1), nn.Tanh()),
        )

    def forward(self, x: Tensor) -> Tensor:
        code = self.decoder.linear(self.encoder.net(x))  # type: ignore[operator]
        return self.decoder.net(code.unflatten(1, (64, 4, 4)))  # type: ignore[operator, no-any-return]


def _small(act: Callable[[], nn.Module], widths: tuple[int, int], flat: int, pad: int) -> nn.Module:
    one, two = widths
    return nn.Sequential(
        *(nn.Conv2d(3, one, 4, 2, pad), act(), nn.Conv2d(one, two, 4, 2, pad), act()),
        *(nn.Flatten(), nn.Linear(flat, 100), act(), nn.Linear(100, 10)),
    )


def conv_small_sigmoid() -> nn.Module:
    return _small(nn.Sigmoid, (16, 32), 1152, 0)


def conv_base() -> nn.Module:
    return _small(nn.ReLU, (8, 16), 1024, 1)
