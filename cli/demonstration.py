"""The experiment behind ``shiftscope demo``; imports torch, so only the command imports it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import shiftscope as ss
from shiftscope.experiments import Labelled, digits, mlp, train
from shiftscope.files import atomic_file
from shiftscope.io import input_statistics
from shiftscope.snapshot import Snapshot

__all__ = ["FULL", "QUICK", "Outcome", "Size", "demonstrate"]

Update = Callable[[str, int, int], None]

NETWORKS = {"plain": "plain weights", "lcw": "zero-sum weights"}
"""Folder name -> what is special about the network."""


@dataclass(frozen=True)
class Size:
    """How large the networks are, and how long they train."""

    depth: int
    width: int
    epochs: int

    def __str__(self) -> str:
        """In words."""
        return f"{self.depth} sigmoid layers of {self.width} neurons, {self.epochs} epochs"


FULL = Size(depth=20, width=128, epochs=30)
QUICK = Size(depth=8, width=64, epochs=6)


@dataclass(frozen=True)
class Outcome:
    """What became of one network.

    Attributes:
        name: Name of its folder and checkpoint.
        title: What is special about it.
        size: What both networks have in common.
        checkpoint: The file with its state dict.
        snapshot: Its measurement on the digits held out.
        verdict: The diagnosis in one sentence.
    """

    name: str
    title: str
    size: Size
    checkpoint: Path
    snapshot: Snapshot
    verdict: str

    @property
    def figures(self) -> tuple[str, str, str, str]:
        """Loss, accuracy, mean shift share and decades of gradient variance lost, as text."""
        sites, told = self.snapshot.sites, self.snapshot.manifest
        hidden = sites[sites["kind"] == "linear"].iloc[:-1]
        decades = hidden["log10_grad_z_var"]
        return (
            f"{told['loss']:.3f}",
            f"{told['accuracy']:.1%}",
            f"{hidden['shift_share'].mean():.2f}",
            f"{decades.iloc[-1] - decades.iloc[0]:.1f}",
        )


def demonstrate(size: Size, seed: int, folder: Path, update: Update) -> list[Outcome]:
    """Train both networks, save them, measure them, and write their reports.

    Args:
        size: Of both networks.
        seed: Of weights, batches and the rows held out; the same for both.
        folder: Gets ``plain.pt`` and ``lcw.pt``, and a folder of each name with the report.
        update: Told ``(stage, done, total)``.

    Returns:
        The outcomes, plain weights first.

    Raises:
        UsageError: scikit-learn is not installed, or the folder cannot be written.
    """
    data = digits(seed)
    outcomes = []
    for name, title in NETWORKS.items():
        with _one_thread():
            model = _trained(name, size, seed, data.training, update)
        checkpoint = folder / f"{name}.pt"
        with atomic_file(checkpoint) as file:
            torch.save(model.state_dict(), file)
        outcomes.append(_reported(name, title, size, model, checkpoint, data.held_out, update))
    return outcomes


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices of 64 x 128 gain nothing from threads, which on a busy machine wait for each other.

    Measured with two threads on two busy cores: ten times slower than with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trained(name: str, size: Size, seed: int, data: Labelled, update: Update) -> nn.Module:
    """A plain network again, whatever it was trained as: zero-sum weights are baked in."""
    model = mlp(data.x.shape[1], size.width, size.depth, seed=seed)
    if name == "lcw":
        ss.constrain(model, "lcw")
    ss.rescale_(model, data.x[:256])
    stage = f"training with {NETWORKS[name]}"
    update(stage, 0, size.epochs)
    train(
        model, data, size.epochs, seed=seed, progress=lambda done, total: update(stage, done, total)
    )
    ss.release(model)
    return model


def _reported(
    name: str,
    title: str,
    size: Size,
    model: nn.Module,
    checkpoint: Path,
    data: Labelled,
    update: Update,
) -> Outcome:
    """Measured on rows held out, in double precision: the gradients of plain weights are tiny."""
    described = "digits held out: " + "x".join(map(str, data.x.shape))
    batches = [(data.x, data.y)]
    update(f"measuring {title}", 0, 1)
    snapshot = ss.analyze(
        model,
        batches,
        cross_entropy,
        dtype=torch.float64,
        inputs={"description": described, "synthetic": False, **input_statistics(batches)},
        manifest={
            "checkpoint": str(checkpoint),
            "architecture": f"{title}, {size}",
            "data": described,
            "loss_function": "cross_entropy",
        },
    )
    update(f"measuring {title}", 1, 1)
    update(f"reporting on {title}", 0, 1)
    findings = ss.diagnose(snapshot)
    ss.report(snapshot, checkpoint.with_suffix(""), findings=findings)
    update(f"reporting on {title}", 1, 1)
    sentence = ss.verdict(findings, snapshot)["sentence"]
    return Outcome(name, title, size, checkpoint, snapshot, sentence)
