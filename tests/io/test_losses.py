"""Losses by name equal torch's, and say what is wrong with a target."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from shiftscope.errors import DataError, LoadError, ShiftscopeError, UsageError
from shiftscope.io import load_loss

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
REAL = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))


def evaluate(spec: str | None, output: Any, target: torch.Tensor) -> torch.Tensor:
    loss = load_loss(spec)
    assert loss is not None
    return loss(output, target)


def test_of_batches_that_are_mappings_the_labels_are_the_target() -> None:
    batch: Any = {"input_ids": LABELS, "labels": LABELS}
    own = SimpleNamespace(logits=LOGITS, loss=torch.tensor(0.25))
    assert evaluate(None, own, batch) == 0.25
    assert evaluate(None, {"logits": LOGITS, "loss": None}, batch) == F.cross_entropy(
        LOGITS, LABELS
    )
    assert evaluate("cross_entropy", own, batch) == F.cross_entropy(LOGITS, LABELS)
    with pytest.raises(DataError, match="needs an entry 'labels' in the batch, which has x"):
        evaluate(None, LOGITS, {"x": LABELS})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "target", "expected"),
    [
        ("cross_entropy", LABELS, F.cross_entropy(LOGITS, LABELS)),
        ("cross_entropy", REAL, F.cross_entropy(LOGITS, REAL)),
        ("nll", LABELS, F.nll_loss(LOGITS, LABELS)),
        ("mse", REAL, F.mse_loss(LOGITS, REAL)),
        ("bce", REAL, F.binary_cross_entropy_with_logits(LOGITS, REAL)),
        (None, LABELS, F.cross_entropy(LOGITS, LABELS)),
        (None, REAL, F.mse_loss(LOGITS, REAL)),
    ],
)
def test_values(spec: str | None, target: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(evaluate(spec, LOGITS, target), expected)


@pytest.mark.parametrize(
    "output", [SimpleNamespace(logits=LOGITS), {"logits": LOGITS}, (LOGITS, None), [[LOGITS]]]
)
def test_outputs_that_wrap_the_logits(output: Any) -> None:
    assert torch.equal(evaluate("cross_entropy", output, LABELS), F.cross_entropy(LOGITS, LABELS))


def test_sequences_pixels_and_ignored_labels() -> None:
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[0, 1, 2, -100, 1], [2, 2, 0, 1, -100]])
    assert torch.equal(evaluate("cross_entropy", logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("spec", ["mse", "bce"])
def test_a_vector_of_targets_fits_one_column(spec: str) -> None:
    output, target = LOGITS[:, :1], REAL[:, 0]
    assert torch.equal(evaluate(spec, output, target), evaluate(spec, output[:, 0], target))


def test_none_is_no_loss() -> None:
    assert load_loss("none") is None


@pytest.mark.parametrize(
    ("spec", "output", "target", "says"),
    [
        ("cross_entropy", LOGITS, LABELS + 1, "label 3 is out of range: the model has 3 outputs"),
        ("cross_entropy", LOGITS, LABELS - 1, "label -1 is out of range"),
        ("nll", LOGITS, LABELS + 5, "label 7"),
        ("cross_entropy", LOGITS, LABELS[:5], r"labels of shape \[6\].*got \[5\]"),
        ("cross_entropy", LOGITS[:, 0], LABELS, r"output of shape \[6\]"),
        ("nll", LOGITS, REAL[:, 0], "expects class numbers"),
        ("mse", LOGITS, LABELS, r"shape \[6, 3\], got \[6\]"),
        ("bce", LOGITS, REAL + 1, r"in \[0, 1\]"),
        ("cross_entropy", "text", LABELS, "returns a str"),
        ("cross_entropy", {}, LABELS, "returns a NoneType"),
    ],
)
def test_targets_that_do_not_fit(spec: str, output: Any, target: torch.Tensor, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        evaluate(spec, output, target)
    assert caught.value.remedy


OWN = """
import torch
from torch import nn
def good(output, target): return (output.sum(1) - target).square().mean()
def rows(output, target): return output.sum(1)
def column(output, target): return output.sum().view(1)
class Module(nn.MSELoss): pass
number = 3
"""


def test_own_losses(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    loss = load_loss("own.py:good", base=tmp_path)
    assert loss is not None
    assert torch.equal(loss(LOGITS, LABELS), (LOGITS.sum(1) - LABELS).square().mean())
    module = load_loss("own.py:Module", base=tmp_path / "x", folders=[tmp_path])
    assert module is not None
    assert torch.equal(module(LOGITS, REAL), F.mse_loss(LOGITS, REAL))
    column = load_loss("own.py:column", base=tmp_path)
    assert column is not None
    assert column(LOGITS, LABELS).shape == ()
    rows = load_loss("own.py:rows", base=tmp_path)
    assert rows is not None
    with pytest.raises(DataError, match=r"returns \[6\], expected a scalar"):
        rows(LOGITS, LABELS)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("crossentropy", UsageError),
        ("own.py:absent", UsageError),
        ("own.py:number", UsageError),
        ("broken.py:x", LoadError),
    ],
)
def test_bad_specs(tmp_path: Path, spec: str, error: type[ShiftscopeError]) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(error) as caught:
        load_loss(spec, base=tmp_path)
    assert caught.value.remedy
