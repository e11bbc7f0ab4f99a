"""The Hugging Face callback on a real Trainer: numbers, equal training, reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("accelerate", reason="needs accelerate", exc_type=ImportError)
pytest.importorskip("transformers", reason="needs transformers")
import transformers

from shiftscope.errors import UsageError
from shiftscope.integrations import JsonLines, TransformersWatch

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


def fit(model: nn.Module, folder: Path, *callbacks: Any, **options: Any) -> None:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "hf"),
        num_train_epochs=1,
        per_device_train_batch_size=8,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        **options,
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=rows(), callbacks=list(callbacks)
    )
    trainer.train()


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


def test_nothing_is_told_before_the_run() -> None:
    with pytest.raises(UsageError, match="nothing was watched"):
        _ = TransformersWatch().trace
