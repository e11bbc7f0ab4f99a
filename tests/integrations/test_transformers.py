"""The Hugging Face callback on a real Trainer: numbers, equal training, reports."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("accelerate", reason="needs accelerate", exc_type=ImportError)
pytest.importorskip("transformers", reason="needs transformers")
import transformers

import shiftscope as ss
from shiftscope.errors import UsageError
from shiftscope.integrations import Csv, JsonLines, TransformersWatch

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.body(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(48, 6, generator=generator)
    labels = torch.randint(3, (48,), generator=generator)
    return [{"x": a, "labels": b} for a, b in zip(x, labels, strict=True)]


def trainer_of(
    model: nn.Module, folder: Path, *callbacks: Any, **options: Any
) -> transformers.Trainer:
    told = {
        "output_dir": str(folder / "hf"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**{**told, **options}),
        train_dataset=rows(),
        eval_dataset=rows(),
        callbacks=list(callbacks),
    )


def fit(model: nn.Module, folder: Path, *callbacks: Any, **options: Any) -> None:
    trainer_of(model, folder, *callbacks, **options).train()


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


class Stop(transformers.TrainerCallback):
    """An error in the middle of training, once."""

    def __init__(self) -> None:
        self.due = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.due and state.global_step == 3:
            self.due = False
            raise RuntimeError("on purpose")


def test_every_step_is_measured_and_training_is_equal(tmp_path: Path) -> None:
    bare, watched = Network(), Network()
    fit(bare, tmp_path)
    path = tmp_path / "run.jsonl"
    sinks = [JsonLines(path)]
    callback = TransformersWatch(every=1, window=1, out=tmp_path / "run", sinks=sinks)
    fit(watched, tmp_path, callback)
    for one, other in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    assert callback.trace.steps == (0, 1, 2, 3, 4, 5)
    for window in callback.trace:
        assert set(window.snapshot.sites["site"]) == {"body.0", "body.1", "body.2"}
        assert (window.snapshot.neurons["grad_z_count"] == 8).all()
    assert len(json.loads((tmp_path / "run" / "report.json").read_text())["windows"]) == 6
    assert len(path.read_text().splitlines()) == 6
    assert not watched.body[0]._forward_hooks


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    callback = TransformersWatch(every=1, window=1)
    fit(Network(), tmp_path, callback, gradient_accumulation_steps=3)
    assert callback.trace.steps == (0, 1)
    assert callback.trace[0].snapshot.sites["count"].max() == 24


def test_a_second_training_is_a_run_of_its_own(tmp_path: Path) -> None:
    sinks = [JsonLines(tmp_path / "run.jsonl"), Csv(tmp_path / "run.csv")]
    callback = TransformersWatch(every=3, window=1, sinks=sinks)
    trainer = trainer_of(Network(), tmp_path, callback)
    trainer.train()
    first = callback.trace
    trainer.train()
    assert first.steps == callback.trace.steps == (0, 3)
    assert first is not callback.trace
    assert steps_in(tmp_path / "run.jsonl") == [0, 3, 0, 3]
    table = pd.read_csv(tmp_path / "run.csv").query("site == 'body.0'")
    assert list(table["step"]) == [0, 3, 0, 3]


def test_steps_have_the_numbers_of_the_trainer(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    fit(Network(), tmp_path, **options, max_steps=3)
    path = tmp_path / "run.jsonl"
    callback = TransformersWatch(every=2, window=1, sinks=[JsonLines(path)])
    trainer = trainer_of(Network(), tmp_path, callback, **options, max_steps=6)
    trainer.train(resume_from_checkpoint=str(tmp_path / "hf" / "checkpoint-3"))
    assert callback.trace.steps == (4,)
    assert steps_in(path) == [4]


def begun() -> ss.Trace:
    """Of a run that made one step: the next one is not due."""
    trace = ss.Trace()
    trace.steps_done = 1
    return trace


def test_a_run_without_a_recorded_step_ends_well(tmp_path: Path) -> None:
    callback = TransformersWatch(out=tmp_path / "run", every=5, resume=begun())
    with pytest.warns(RuntimeWarning, match="no report in .*: the trace holds no window"):
        fit(Network(), tmp_path, callback, max_steps=2)
    assert not (tmp_path / "run").exists()


def test_a_bad_folder_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = Network()
    with pytest.raises(UsageError, match="cannot write") as caught:
        fit(model, tmp_path, TransformersWatch(every=1, out=tmp_path / "file" / "run"))
    assert "out=" in caught.value.remedy
    assert torch.equal(model.body[0].weight, Network().body[0].weight)


def failed(trainer: transformers.Trainer) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.train()


def test_a_failed_run_is_ended_by_hand(tmp_path: Path) -> None:
    model, sinks = Network(), [Csv(tmp_path / "run.csv")]
    callback = TransformersWatch(every=1, window=1, sinks=sinks, out=tmp_path / "run")
    trainer = trainer_of(model, tmp_path, callback, Stop())
    failed(trainer)
    hooks = trainer.optimizer.optimizer._optimizer_step_pre_hooks
    assert len(hooks) == 1
    callback.close()
    callback.close()
    assert len(hooks) == 0
    assert not model.body[0]._forward_hooks
    assert set(pd.read_csv(tmp_path / "run.csv")["step"]) == {0, 1, 2}
    assert (tmp_path / "run" / "report.html").exists()


def test_a_failed_run_is_ended_by_the_next(tmp_path: Path) -> None:
    model, path = Network(), tmp_path / "run.csv"
    callback = TransformersWatch(every=1, window=1, sinks=[Csv(path)])
    trainer = trainer_of(model, tmp_path, callback, Stop())
    failed(trainer)
    hooks = trainer.optimizer.optimizer._optimizer_step_pre_hooks
    trainer.train()
    assert len(hooks) == 0
    assert callback.trace.steps == (0, 1, 2, 3, 4, 5)
    table = pd.read_csv(path).query("site == 'body.0'")
    assert list(table["step"]) == [0, 1, 2, 0, 1, 2, 3, 4, 5]


def test_a_failed_run_that_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    model, path = Network(), tmp_path / "run.csv"
    trainer = trainer_of(
        model,
        tmp_path,
        TransformersWatch(every=1, window=1, sinks=[Csv(path)], out=tmp_path / "run"),
        Stop(),
    )
    failed(trainer)
    optimizer = trainer.optimizer.optimizer
    trainer.remove_callback(TransformersWatch)
    gc.collect()
    assert not optimizer._optimizer_step_pre_hooks
    assert not model.body[0]._forward_hooks
    assert set(pd.read_csv(path)["step"]) == {0, 1, 2}
    assert not (tmp_path / "run").exists()  # drawing is not for the garbage collector


def test_a_script_that_dies_leaves_its_report(tmp_path: Path) -> None:
    script = """
import sys; from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_transformers import Csv, Network, Stop, TransformersWatch, trainer_of
folder = Path(sys.argv[2])
sinks = [Csv(folder / "run.csv")]
watch = TransformersWatch(every=1, window=1, sinks=sinks, out=folder / "run")
trainer_of(Network(), folder, watch, Stop()).train()
"""
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "on purpose" in done.stderr
    assert set(pd.read_csv(tmp_path / "run.csv")["step"]) == {0, 1, 2}
    assert (tmp_path / "run" / "report.html").exists(), done.stderr


@pytest.mark.parametrize(
    ("options", "steps", "samples"),
    [
        ({"eval_strategy": "steps", "eval_steps": 2}, (2, 6), 3 * 8),
        ({"eval_strategy": "epoch"}, (6, 6), 8),
        ({"eval_strategy": "no", "eval_on_start": True}, (0, 0), 48),  # step 0 is recorded: all
    ],
)
def test_the_first_batch_of_a_validation_is_recorded(
    options: dict[str, Any], steps: tuple[int, int], samples: int, tmp_path: Path
) -> None:
    bare, watched = Network(), Network()
    fit(bare, tmp_path, **options)
    callback = TransformersWatch(every=100, window=1)
    fit(watched, tmp_path, callback, **options)
    windows = list(callback.trace.phase("eval"))
    assert sum(w.snapshot.sites["count"].max() for w in windows) == samples
    assert (windows[0].first, windows[-1].last) == steps
    assert callback.trace.phase("train").steps == (0,)
    for one, other in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    off = TransformersWatch(every=100, window=1, validation=False)
    fit(Network(), tmp_path, off, eval_strategy="epoch")
    assert [w.phase for w in off.trace] == ["train"]


def test_a_validation_before_the_first_step_is_recorded(tmp_path: Path) -> None:
    callback = TransformersWatch(every=5, window=1, resume=begun())  # the first step is not due
    fit(Network(), tmp_path, callback, eval_on_start=True)
    (window,) = callback.trace.phase("eval")
    assert (window.first, window.snapshot.sites["count"].max()) == (1, 8)


def test_nothing_is_told_before_the_run() -> None:
    with pytest.raises(UsageError, match="nothing was watched"):
        _ = TransformersWatch().trace
