"""Small training runs of every usual kind, and all that they leave behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import shiftscope as ss


def mlp(width: int = 12) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, width), nn.ReLU(inplace=True), nn.Linear(width, width), nn.Sigmoid(),
        nn.Linear(width, 3),
    )  # fmt: skip


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm(self.conv(x)))
        h = self.drop(h) * 1.0
        h += torch.sigmoid(h)
        return self.head(self.act(h).mean(dim=(2, 3)))  # type: ignore[no-any-return]


class Rnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(9, 6), nn.Linear(6, 3)
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            h = torch.tanh(self.cell(torch.cat([step, h], dim=1)))
        return self.head(h) + self.lstm(x)[0].sum(dim=1)[:, :3]  # type: ignore[no-any-return]


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (7, 6)),
    "conv": (Conv, (9, 3, 6, 6)),
    "rnn": (Rnn, (5, 4, 3)),
    "transformer": (transformer, (4, 5, 8)),
}


def run(
    model: nn.Module, shape: tuple[int, ...], how: str, every: int | None, device: str = "cpu"
) -> dict[str, Any]:
    """A small training run; everything it leaves behind."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # a copy is not flat, and cuDNN says so
    make = torch.optim.Adam if how != "sgd" else torch.optim.SGD
    optimizer = make(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=3)
    half = torch.bfloat16 if device == "cpu" else torch.float16
    scaled = how == "amp"
    probe = None
    if every is not None:
        probe = ss.watch(model, optimizer, every=every, window=2, scaler=scaler if scaled else None)
    losses = []
    for _ in range(7):
        optimizer.zero_grad()
        for _ in range(2 if how == "accumulation" else 1):
            x = torch.randn(shape, device=device)
            x = x.contiguous(memory_format=torch.channels_last) if how == "channels_last" else x
            with torch.autocast(device, half, enabled=scaled):
                loss = model(x).float().square().mean()
            (scaler.scale(loss) if scaled else loss).backward()
            losses.append(loss.detach())
        if scaled:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    result = {
        "weights": [t.clone() for t in model.state_dict().values()],
        "grads": [p.grad.clone() for p in model.parameters() if p.grad is not None],
        "losses": losses,
        "state": [
            v for s in optimizer.state_dict()["state"].values() for v in s.values()
            if isinstance(v, Tensor)
        ],
        "rng": [torch.get_rng_state()],
    }  # fmt: skip
    if device == "cuda":
        result["rng"].append(torch.cuda.get_rng_state())
    if probe is not None:
        assert len(probe.trace) > 0
        probe.detach()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert not optimizer._optimizer_step_post_hooks
    assert torch._C._len_torch_function_stack() == 0
    return result


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(
        len(one[key]) == len(other[key])
        and all(torch.equal(a, b) for a, b in zip(one[key], other[key], strict=True))
        for key in one
    )


CASES = [
    *((name, how) for name in MODELS for how in ("sgd", "adam")),
    *(("mlp", how) for how in ("amp", "accumulation")),
    *(("conv", how) for how in ("amp", "channels_last", "accumulation")),
    ("transformer", "amp"),
]
