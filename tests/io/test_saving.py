"""Written weights come back strictly, in every format, and never half."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import shiftscope as ss
from shiftscope.errors import UsageError
from shiftscope.io import load_checkpoint
from shiftscope.io.saving import save_state


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_released_model_loads_strictly_with_equal_outputs(suffix: str, tmp_path: Path) -> None:
    model, x = network().eval(), torch.rand(4, 1, 8, 8)
    ss.constrain(model, "lcw")
    y = model(x)
    ss.release(model)
    path = tmp_path / f"fixed{suffix}"
    save_state(model.state_dict(), path)
    if suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, weights_only=True)
        assert list(state) == list(network().state_dict())
    again = network().eval()
    again.load_state_dict(state, strict=True)
    torch.testing.assert_close(again(x), y, rtol=1e-6, atol=1e-6)
    assert load_checkpoint(path).state.keys() == state.keys()


def test_tied_and_strided_tensors_are_written_whole(tmp_path: Path) -> None:
    tied = torch.rand(4, 6)
    state = {"a": tied, "b": tied, "c": tied.T, "d": tied[:, ::2]}
    for name in ("x.pt", "x.safetensors"):
        save_state(state, tmp_path / name)
        read = load_checkpoint(tmp_path / name).state
        assert all(torch.equal(read[key], value) for key, value in state.items())


def test_unknown_suffixes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no format of weights"):
        save_state({"a": torch.zeros(1)}, tmp_path / "weights.txt")
    assert list(tmp_path.iterdir()) == []
