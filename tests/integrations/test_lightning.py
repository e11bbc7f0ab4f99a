"""The Lightning callback on a real Trainer: numbers, phases, equal training, reports."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="needs lightning", exc_type=ImportError)
import lightning.pytorch as pl

from shiftscope.errors import UsageError
from shiftscope.integrations import JsonLines, LightningWatch

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*num_workers.*"),
    pytest.mark.filterwarnings("ignore:.*tensorboardX.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


class Module(pl.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(48, 6, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(3, (48,), generator=generator)), batch_size=8)


def fit(net: nn.Module, folder: Path, *callbacks: Any, **options: Any) -> None:
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(Module(net), data())


def test_every_step_is_measured_and_training_is_equal(tmp_path: Path) -> None:
    bare, watched = network(), network()
    fit(bare, tmp_path)
    callback = LightningWatch(every=1, window=1, out=tmp_path / "run")
    fit(watched, tmp_path, callback)
    for one, other in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    assert callback.trace.steps == (0, 1, 2, 3, 4, 5)
    z = copy.deepcopy(network())[0](next(iter(data()))[0]).double()
    first = callback.trace[0].snapshot.neurons.query("site == 'net.0'")
    assert first["z_mean"].to_numpy() == pytest.approx(z.mean(0).detach().numpy(), rel=1e-5)
    assert (first["grad_z_count"] == 8).all()
    told = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(told["windows"]) == 6
    assert not watched[0]._forward_hooks


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    callback = LightningWatch(every=1, window=1)
    fit(network(), tmp_path, callback, accumulate_grad_batches=3)
    assert callback.trace.steps == (0, 1)
    assert callback.trace[0].snapshot.sites["count"].max() == 24


def test_windows_go_to_the_sinks_once(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    fit(network(), tmp_path, LightningWatch(every=2, window=1, sinks=[JsonLines(path)]))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 2, 4]


def test_a_failing_run_leaves_nothing_on_the_model(tmp_path: Path) -> None:
    class Failing(Module):
        def training_step(self, batch: Any, index: int) -> Tensor:
            if index == 3:
                raise RuntimeError("on purpose")
            return super().training_step(batch, index)

    net, callback = network(), LightningWatch(every=1, window=1)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
        callbacks=[callback],
    )
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(Failing(net), data())
    assert callback.trace.steps[:3] == (0, 1, 2)
    assert not net[0]._forward_hooks


def test_nothing_is_told_before_the_run() -> None:
    with pytest.raises(UsageError, match="nothing was watched"):
        _ = LightningWatch().trace
