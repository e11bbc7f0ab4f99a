"""Copies and pickles of a model that is being watched carry no hook."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import shiftscope as ss


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 5)))


def saved(net: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "old pickle": lambda net: pickle.loads(pickle.dumps(net, protocol=2)),
    "torch.save": saved,
    "AveragedModel": lambda net: AveragedModel(net).module,
    "copy of a copy": lambda net: copy.deepcopy(pickle.loads(pickle.dumps(net))),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("probes", [1, 2])
def test_a_copy_carries_no_hook(way: str, probes: int) -> None:
    net = model()
    watching = [ss.watch(net, every=1) for _ in range(probes)]
    net(torch.randn(3, 12))
    twin = WAYS[way](net)
    hooks = [(*m._forward_hooks, *m._forward_pre_hooks) for m in twin.modules()]
    assert hooks == [()] * len(hooks)
    calls = watching[0]._recording.attachment.forwards
    twin(torch.randn(3, 12)).sum().backward()
    assert watching[0]._recording.attachment.forwards == calls
    torch.jit.script(twin)
    for probe in watching:
        probe.detach()


@pytest.mark.parametrize("way", WAYS)
def test_hooks_that_a_copy_gets_later_are_called_as_usual(way: str) -> None:
    net, seen = model(), []
    probe = ss.watch(net, every=1)
    twin = WAYS[way](net)
    probe.detach()
    twin[0].register_forward_pre_hook(lambda *given: seen.append(len(given)))
    twin[0].register_forward_hook(lambda *given: seen.append(len(given)))
    with ss.watch(twin, every=1) as second:
        twin(torch.randn(3, 12)).sum().backward()
        second.step()
    assert seen == [2, 3]
    assert second.snapshot().sites["count"].tolist() == [3, 3, 3]


def test_a_pickle_loads_where_shiftscope_is_not_installed(tmp_path: Path) -> None:
    net, file = model(), tmp_path / "net.pt"
    with ss.watch(net, every=1):
        torch.save(net, file)
    code = (
        "import sys, torch; sys.modules['shiftscope'] = None\n"
        f"net = torch.load({str(file)!r}, weights_only=False)\n"
        "net[0].register_forward_pre_hook(lambda module, args: None)\n"
        "print(net(torch.zeros(2, 12)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[2, 5]" in done.stdout
