"""Models measured in training and without gradients, and the naive numbers of their neurons."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import shiftscope as ss


def naive(values: Tensor, dim: int) -> tuple[np.ndarray, np.ndarray]:
    rows = values.detach().double().movedim(dim, -1).flatten(0, -2)
    return rows.mean(0).numpy(), rows.var(0, correction=0).numpy()


def agree(snapshot: ss.Snapshot, site: str, stream: str, values: Tensor, dim: int) -> None:
    """Compare the numbers of a stream with those of all its values."""
    own = snapshot.neurons[snapshot.neurons.site == site]
    rows = values.numel() // values.shape[dim]
    assert own["count"].tolist() == [rows] * values.shape[dim]
    mean, variance = naive(values, dim)
    np.testing.assert_allclose(own[f"{stream}_mean"], mean, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(own[f"{stream}_var"], variance, rtol=1e-6, atol=1e-12)


def doubt(snapshot: ss.Snapshot, site: str = ":tanh") -> str:
    notes = str(snapshot.sites.set_index("site").notes[site]).split("; ")
    return next((note for note in notes if "neurons are taken" in note), "")


def trained(model: nn.Module, x: Tensor, steps: int = 1) -> ss.Snapshot:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with ss.watch(model, optimizer, every=1) as probe:
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        return probe.snapshot()


def watched(model: nn.Module, x: Tensor, passes: int = 1) -> ss.Snapshot:
    with ss.watch(model, every=1) as probe:
        with probe.record(), torch.no_grad():
            for _ in range(passes):
                model(x)
        return probe.snapshot()
