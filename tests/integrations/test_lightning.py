"""The Lightning callback on a real Trainer: numbers, phases, equal training, reports."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="needs lightning", exc_type=ImportError)
import lightning.pytorch as pl

import shiftscope as ss
from shiftscope.errors import UsageError
from shiftscope.integrations import Csv, JsonLines, LightningWatch

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


class Failing(Module):
    def training_step(self, batch: Any, index: int) -> Tensor:
        if index == 3:
            raise RuntimeError("on purpose")
        return super().training_step(batch, index)


class Validated(Module):
    def validation_step(self, batch: Any, index: int) -> None:
        self.net(batch[0])


def trainer_of(folder: Path, *callbacks: Any, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
            "callbacks": list(callbacks),
            **options,
        }
    )


def fit(net: nn.Module, folder: Path, *callbacks: Any, **options: Any) -> None:
    trainer_of(folder, *callbacks, **options).fit(Module(net), data())


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


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


class ByLbfgs(Module):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


def test_a_step_that_evaluates_its_closure_several_times_is_one(tmp_path: Path) -> None:
    watching = LightningWatch(every=1, window=1)
    trainer = trainer_of(tmp_path, watching)
    trainer.fit(ByLbfgs(network()), data())
    assert trainer.global_step == 6
    assert watching.trace.steps == (*range(6),)
    assert {w.snapshot.records["net.0"].samples for w in watching.trace} == {8}


class ByItself(Module):
    """Brings no optimizer of torch's: Lightning tells when the gradients are there."""

    def configure_optimizers(self) -> Any:
        return None


def test_a_module_without_an_optimizer_is_trained_on(tmp_path: Path) -> None:
    watching = LightningWatch(every=1)
    with pytest.warns(UserWarning, match="no optimizer"):
        trainer_of(tmp_path, watching).fit(ByItself(network()), data())
    assert watching.probe is not None
    assert not watching.probe.attached


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    callback = LightningWatch(every=1, window=1)
    fit(network(), tmp_path, callback, accumulate_grad_batches=3)
    assert callback.trace.steps == (0, 1)
    assert callback.trace[0].snapshot.sites["count"].max() == 24


def test_windows_go_to_the_sinks_once(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    fit(network(), tmp_path, LightningWatch(every=2, window=1, sinks=[JsonLines(path)]))
    assert steps_in(path) == [0, 2, 4]


def test_a_second_fit_is_a_run_of_its_own(tmp_path: Path) -> None:
    sinks = [JsonLines(tmp_path / "run.jsonl"), Csv(tmp_path / "run.csv")]
    callback = LightningWatch(every=3, window=1, sinks=sinks)
    fit(network(), tmp_path, callback)
    first = callback.trace
    fit(network(), tmp_path, callback, max_epochs=2)
    assert first.steps == (0, 3)
    assert callback.trace.steps == (0, 3, 6, 9)
    assert steps_in(tmp_path / "run.jsonl") == [0, 3, 0, 3, 6, 9]
    table = pd.read_csv(tmp_path / "run.csv").query("site == 'net.0'")
    assert list(table["step"]) == [0, 3, 0, 3, 6, 9]


def test_a_trace_is_resumed_by_the_first_fit_alone(tmp_path: Path) -> None:
    earlier = LightningWatch(every=3, window=1)
    fit(network(), tmp_path, earlier)
    callback = LightningWatch(every=3, window=1, resume=earlier.trace)
    fit(network(), tmp_path, callback)
    assert callback.trace.steps == (0, 3, 6, 9)
    fit(network(), tmp_path, callback)
    assert callback.trace.steps == (0, 3)


def test_steps_have_the_numbers_of_the_trainer(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.fit(Module(network()), data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    path = tmp_path / "run.jsonl"
    callback = LightningWatch(every=4, window=1, sinks=[JsonLines(path)])
    trainer = trainer_of(tmp_path, callback, max_epochs=2)
    trainer.fit(Module(network()), data(), ckpt_path=str(tmp_path / "a.ckpt"))
    assert trainer.global_step == 12
    assert callback.trace.steps == (8,)
    assert steps_in(path) == [8]


def begun() -> ss.Trace:
    """Of a run that made one step: the next one is not due."""
    trace = ss.Trace()
    trace.steps_done = 1
    return trace


def test_a_run_of_one_step_has_a_report(tmp_path: Path) -> None:
    fit(network(), tmp_path, LightningWatch(out=tmp_path / "run"), fast_dev_run=True)
    assert (tmp_path / "run" / "report.html").exists()


def test_a_run_without_a_recorded_step_ends_well(tmp_path: Path) -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    watch = LightningWatch(out=tmp_path / "run", every=5, resume=begun())
    with pytest.warns(RuntimeWarning, match="no report in .*: the trace holds no window"):
        fit(net, tmp_path, watch, fast_dev_run=True)
    assert not torch.equal(before["0.weight"], net.state_dict()["0.weight"])
    assert not (tmp_path / "run").exists()


def test_a_bad_folder_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    net = network()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UsageError, match="cannot write") as caught:
        fit(net, tmp_path, LightningWatch(every=1, out=tmp_path / "file" / "run"))
    assert "out=" in caught.value.remedy
    assert "--out" not in str(caught.value)
    assert torch.equal(before["0.weight"], net.state_dict()["0.weight"])


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    class Spoiler(pl.Callback):
        def on_train_end(self, *args: Any) -> None:
            folder.rmdir()
            folder.touch()

    callback = LightningWatch(every=1, window=1, out=folder / "run")
    with pytest.warns(RuntimeWarning, match="no report in '.*run': cannot write"):
        fit(network(), tmp_path, Spoiler(), callback)
    assert len(callback.trace) == 6


def test_a_last_window_that_fails_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = LightningWatch(every=2, window=1, sinks=[Csv(tmp_path / "run.csv")])
    calls: list[int] = []

    class Spoiler(pl.Callback):
        def on_train_end(self, *args: Any) -> None:
            own = callback.probe.detach  # type: ignore[union-attr]

            def detach() -> None:
                calls.append(len(calls))
                if len(calls) == 1:
                    raise RuntimeError("CUDA error")
                own()

            monkeypatch.setattr(callback.probe, "detach", detach)

    with pytest.warns(RuntimeWarning, match="last window of the run is lost: .*CUDA error"):
        fit(network(), tmp_path, Spoiler(), callback)
    assert calls == [0, 1]
    assert set(pd.read_csv(tmp_path / "run.csv")["step"]) >= {0, 2}


def test_a_sink_that_fails_does_not_end_training(tmp_path: Path) -> None:
    class Bad:
        def write(self, step: int, phase: str, snapshot: Any) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    path = tmp_path / "run.jsonl"
    with pytest.warns(RuntimeWarning, match="Bad failed at step 0.*No space left") as caught:
        fit(
            network(),
            tmp_path,
            LightningWatch(every=2, window=1, sinks=[Bad(), JsonLines(path)]),
        )
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    assert steps_in(path) == [0, 2, 4]


def test_a_failing_run_is_reported_and_leaves_nothing_on_the_model(tmp_path: Path) -> None:
    net = network()
    sinks = [Csv(tmp_path / "run.csv")]
    callback = LightningWatch(every=1, window=1, sinks=sinks, out=tmp_path / "run")
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer_of(tmp_path, callback).fit(Failing(net), data())
    assert callback.trace.steps[:3] == (0, 1, 2)
    assert not net[0]._forward_hooks
    assert (tmp_path / "run" / "report.html").exists()
    assert set(pd.read_csv(tmp_path / "run.csv")["step"]) >= {0, 1, 2}


def test_the_first_batch_of_a_validation_is_recorded(tmp_path: Path) -> None:
    bare, watched = network(), network()
    trainer_of(tmp_path, max_epochs=2).fit(Validated(bare), data(), data())
    callback = LightningWatch(every=100, window=1)
    trainer_of(tmp_path, callback, max_epochs=2).fit(Validated(watched), data(), data())
    seen = [(w.phase, w.last) for w in callback.trace.phase("eval")]
    assert seen[-1] == ("eval", 12)
    assert sum(w.snapshot.sites["count"].max() for w in callback.trace.phase("eval")) == 16
    for one, other in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    off = LightningWatch(every=100, window=1, validation=False)
    trainer_of(tmp_path, off).fit(Validated(network()), data(), data())
    assert [w.phase for w in off.trace] == ["train"]


def test_nothing_is_told_before_the_run() -> None:
    with pytest.raises(UsageError, match="nothing was watched"):
        _ = LightningWatch().trace
