"""Batches: the forms data loaders give, and which part of a step is blamed for what it raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.capture.batches import as_batch

LOSS = nn.functional.cross_entropy


class Two(nn.Module):
    """Takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.a(left) + self.b(right)


class Named(Two):
    """Takes one mapping."""

    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch["left"], batch["right"])


class Paired(Two):
    """Takes one tuple."""

    def forward(self, batch: Any) -> Tensor:
        return super().forward(*batch)


class Optional(Two):
    """Takes keywords that may all be left out, as the models of Hugging Face do."""

    def forward(self, left: Tensor | None = None, right: Any = None, **_: Any) -> Tensor:
        assert left is not None
        return super().forward(left, right)


def parts(rows: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(rows, 4, generator=generator),
        torch.randn(rows, 5, generator=generator),
        torch.randint(3, (rows,), generator=generator),
    )


LEFT, RIGHT, TARGET = parts()
NAMES = {"left": LEFT, "right": RIGHT}


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        (Two, (NAMES, TARGET)),
        (Two, ((LEFT, RIGHT), TARGET)),
        (Two, ([LEFT, RIGHT], TARGET)),
        (Named, (NAMES, TARGET)),
        (Paired, ((LEFT, RIGHT), TARGET)),
        (Optional, (NAMES, TARGET)),
    ],
)
def test_several_inputs_and_a_target(kind: type[Two], item: Any) -> None:
    torch.manual_seed(0)
    model = kind()
    plain = Two()
    plain.load_state_dict(model.state_dict())
    want = ss.analyze(plain, [(LEFT, RIGHT, TARGET)], LOSS)
    snapshot = ss.analyze(model, [item], LOSS)
    assert snapshot.manifest["samples"] == 8
    assert snapshot.manifest["loss"] == want.manifest["loss"]
    assert snapshot.sites["log10_grad_z_var"].equals(want.sites["log10_grad_z_var"])
    tried = ss.trial(model, [item], LOSS, steps=1)
    assert tried[0].snapshot.manifest["loss"] == pytest.approx(want.manifest["loss"])


def test_a_target_that_no_loss_takes_is_left_aside() -> None:
    torch.manual_seed(0)
    model, item = Two(), (LEFT, RIGHT, TARGET)
    assert ss.analyze(model, [item]).sites["site"].tolist() == ["a", "b"]
    assert {fix.sites for fix in ss.prescribe(model, [item], LOSS, methods=["rescale"])} == {
        ("a", "b")
    }
    ss.rescale_(model, item)
    assert model.a(LEFT).detach().std(correction=0) == pytest.approx(1.0, rel=1e-5)


def test_a_model_that_takes_all_items_gets_them() -> None:
    class Three(Two):
        def forward(self, left: Tensor, right: Tensor, third: Any = None) -> Tensor:
            assert third is not None
            return super().forward(left, right)

    ss.analyze(Three(), [(LEFT, RIGHT, TARGET)])


def test_frozen_models_get_gradients_through_nested_inputs() -> None:
    model = Named().requires_grad_(False)
    snapshot = ss.analyze(model, [(NAMES, TARGET)], LOSS)
    assert snapshot.manifest["gradients"]
    assert snapshot.sites["log10_grad_z_var"].notna().all()


def test_the_inputs_are_counted_and_told_however_deep_they_lie() -> None:
    batch = as_batch(({"a": [LEFT, "word"], "b": RIGHT}, TARGET), with_target=True)
    assert batch.samples == 8
    assert batch.shapes == "0.a.0: (8, 4), 0.a.1: str, 0.b: (8, 5), target: (8,)"
    assert as_batch([*range(40)], with_target=False).shapes.endswith("7: int, ...")
    assert as_batch(({"a": LEFT[:0]}, TARGET[:0]), with_target=True).samples == 0


def wrong_signature(output: Tensor) -> Tensor:
    return output.mean()


@pytest.mark.parametrize("verb", [ss.analyze, ss.trial])
@pytest.mark.parametrize(
    ("loss", "target", "says"),
    [
        (wrong_signature, TARGET, "^the loss raised TypeError .*wrong_signature"),
        (LOSS, TARGET + 3, r"^the loss raised IndexError .*target: \(8,\)"),
        (LOSS, TARGET[:3], "^the loss raised ValueError"),
    ],
)
def test_the_loss_is_blamed_for_what_it_raises(
    verb: Any, loss: Any, target: Tensor, says: str
) -> None:
    with pytest.raises(ss.MeasureError, match=says) as caught:
        verb(nn.Linear(4, 3), [(LEFT, target)], loss)
    assert "(output, target)" in caught.value.remedy


class Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ArithmeticError("no way back")


@pytest.mark.parametrize("verb", [ss.analyze, ss.trial])
def test_the_model_and_the_backward_pass_are_blamed_for_theirs(verb: Any) -> None:
    with pytest.raises(ss.MeasureError, match=r"^the model raised .*0: \(8, 5\)"):
        verb(nn.Linear(4, 3), [(RIGHT, TARGET)], LOSS)

    def refusing(output: Tensor, target: Tensor) -> Tensor:
        return LOSS(Refusing.apply(output), target)

    with pytest.raises(ss.MeasureError, match=r"^the backward pass raised ArithmeticError"):
        verb(nn.Linear(4, 3), [(LEFT, TARGET)], refusing)


def test_an_optimizer_that_cannot_step_is_blamed() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    data = [(torch.randint(5, (8, 2)), TARGET)]
    with pytest.raises(ss.MeasureError, match=r"^the optimizer raised .* in update 1 of the trial"):
        ss.trial(model, data, LOSS, torch.optim.Adam(model.parameters()))
