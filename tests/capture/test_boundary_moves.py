"""Moves of boundaries while training: read right through every parametrisation, and harmlessly."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import shiftscope as ss
from shiftscope.capture.boundary_moves import BoundaryTracker, effective_weight


def naive(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit normals, offsets and locations, by the definition, in float64."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    norm = np.linalg.norm(rows, axis=1)
    u, offset = rows / norm[:, None], bias / norm
    return u, offset, -offset[:, None] * u


def train(model: nn.Module, x: torch.Tensor, steps: int, after: Callable[[], object]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        after()


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        changed: nn.Module = torch.nn.utils.weight_norm(layer)
    return changed


PARAMETRISATIONS: dict[str, Callable[[nn.Module], object]] = {
    "standard": lambda layer: layer,
    "weight norm": parametrizations.weight_norm,
    "weight norm by hook": old_weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm by hook": torch.nn.utils.spectral_norm,
    "lcw": lambda layer: ss.constrain(layer, "lcw"),
    "gmp": lambda layer: ss.constrain(layer, "gmp"),
}


@pytest.mark.parametrize("name", PARAMETRISATIONS)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_moves_are_those_of_the_effective_weights(name: str, kind: str) -> None:
    torch.manual_seed(0)

    def build() -> nn.Sequential:
        layer = nn.Linear(5, 7) if kind == "linear" else nn.Conv2d(2, 7, 3)
        layer = layer.double()
        PARAMETRISATIONS[name](layer)
        return nn.Sequential(layer, nn.ReLU())

    model, twin = build(), build().eval()
    layer = model[0]
    shape = (20, 5) if kind == "linear" else (20, 2, 5, 5)
    tracker = BoundaryTracker(model, "0")
    seen = []

    def weights() -> tuple[np.ndarray, np.ndarray]:
        # what a forward pass in evaluation mode uses, on a copy
        twin.load_state_dict(model.state_dict())
        twin(torch.zeros(shape, dtype=torch.float64))
        return twin[0].weight.detach().numpy(), twin[0].bias.detach().numpy()

    before = naive(*weights())
    states = copy.deepcopy(model.state_dict())
    effective_weight(layer)
    assert all(torch.equal(states[k], v) for k, v in model.state_dict().items())
    assert layer.training

    def after() -> None:
        nonlocal before
        now = naive(*weights())
        moves = tracker.step()["0"]
        cosine = np.clip((before[0] * now[0]).sum(1), -1, 1)
        np.testing.assert_allclose(moves.angular_change, np.arccos(cosine), atol=3e-8)
        np.testing.assert_allclose(moves.offset_change, now[1] - before[1], atol=1e-12)
        distance = np.linalg.norm(now[2] - before[2], axis=1)
        np.testing.assert_allclose(moves.displacement, distance, atol=1e-12)
        seen.append(distance)
        before = now

    train(model, torch.randn(shape, dtype=torch.float64), 3, after)
    np.testing.assert_allclose(tracker.displacements("0"), seen, atol=1e-12)
    frame = tracker.frame()
    assert frame["step"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(frame["displacement_max"], np.max(seen, axis=1), atol=1e-12)
    spread = np.sqrt(np.square(before[2] - before[2].mean(0)).sum(1).mean())
    assert frame["spread"].iloc[-1] == pytest.approx(spread, rel=1e-12)
    assert (frame["displacement_mean"] > 0).all()


def test_a_batch_norm_is_folded_in() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()).double()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    x = 2 + torch.randn(50, 4, dtype=torch.float64)
    tracker = BoundaryTracker(model, "0", fold={"0": "1"})
    train(model, x, 2, tracker.step)
    weight, bias = tracker.effective("0")
    model.eval()
    torch.testing.assert_close(x @ weight.T + bias, model[1](model[0](x)))
    # the statistics move the boundary, too: without an optimiser step
    model.train()
    model(10 * x)
    assert tracker.step()["0"].mean_displacement > 0


def test_a_layer_behind_which_nothing_is_folded_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
    tracker = BoundaryTracker(model)
    model(torch.randn(9, 4))
    assert tracker.step()["0"].max_displacement == 0


def test_transposed_convolutions_have_units_along_the_second_dimension() -> None:
    layer = nn.ConvTranspose2d(3, 5, 2)
    assert BoundaryTracker(layer).step()[""].displacement.shape == (5,)
    with pytest.raises(ss.UsageError, match="without groups"):
        BoundaryTracker(nn.ConvTranspose2d(4, 4, 2, groups=2))


def test_the_share_of_boundaries_that_meet_the_data() -> None:
    layer = nn.Linear(1, 4)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.copy_(torch.tensor([-0.5, -0.2, 3.0, -7.0]))
    tracker = BoundaryTracker(
        layer, data={"": torch.rand(200, 1, generator=torch.Generator().manual_seed(0))}
    )
    tracker.step()
    assert tracker.frame()["crossing_share"].item() == 0.5


def test_a_unit_without_weight_has_no_boundary() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    tracker = BoundaryTracker(layer)
    tracker.step()
    assert tracker.frame()[["angle_mean", "displacement_mean", "spread"]].isna().all(axis=None)


def test_gmp_turns_by_at_most_the_change_of_its_angles() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(30, 8).double()
    ss.constrain(layer, "gmp")
    tracker = BoundaryTracker(layer)
    angles = layer.parametrizations.weight.original1
    before = angles.detach().clone()
    train(layer, torch.randn(40, 30, dtype=torch.float64), 1, lambda: None)
    bound = (angles.detach() - before).norm(dim=1)
    assert (tracker.step()[""].angular_change <= bound + 1e-12).all()


def test_the_moves_have_a_picture() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    tracker = BoundaryTracker(model)
    train(model, torch.randn(8, 3), 5, tracker.step)
    ax = ss.draw.boundary_moves({path: tracker.displacements(path) for path in tracker.sites})
    assert [line.get_label() for line in ax.lines] == ["0", "2"]


def test_tracking_holds_no_model_and_little_memory() -> None:
    model = nn.Linear(1000, 3)
    tracker = BoundaryTracker(model)
    tracker.step()
    kept = tracker._before[""]
    assert kept.directions.dtype == torch.float32
    assert kept.offsets.shape == (3,)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(ss.UsageError, match="is gone"):
        tracker.step()


def test_wrong_names_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(ss.UsageError, match="called 'conv' or 'x'") as caught:
        BoundaryTracker(model, ["conv", "x"])
    assert "there are '0'" in str(caught.value)
    with pytest.raises(ss.UsageError, match="cannot be folded"):
        BoundaryTracker(model, fold={"0": "1"})
    with pytest.raises(ss.UsageError, match="not tracked"):
        BoundaryTracker(model, data={"7": torch.zeros(1, 3)})


def test_numbers_of_steps_may_be_given_and_marks_moved() -> None:
    layer = nn.Linear(2, 2)
    tracker = BoundaryTracker(layer)
    with torch.no_grad():
        layer.bias.add_(5.0)
    tracker.mark()
    assert tracker.step(40)[""].max_displacement == 0
    assert tracker.frame()["step"].tolist() == [40]
    assert math.isnan(tracker.frame()["crossing_share"].item())


@pytest.mark.parametrize("counted", [True, False], ids=["optimizer", "probe.step"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_live_probe_follows_boundaries_over_the_steps_it_records(
    every: int, counted: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    twin = copy.deepcopy(model)
    x = torch.randn(30, 4)
    tracker = BoundaryTracker(twin, "0")
    train(twin, x, 6, tracker.step)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    listened = {"optimizer": optimizer} if counted else {}
    with ss.watch(model, every=every, boundaries="0", **listened) as probe:
        for _ in range(6):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            if not counted:
                probe.step()
    assert probe.boundaries is not None
    frame = probe.boundaries.frame()
    assert frame["step"].tolist() == list(range(0, 6, every))
    wanted = tracker.frame().iloc[::every, 2:].to_numpy()
    np.testing.assert_array_equal(frame.iloc[:, 2:].to_numpy(), wanted)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_a_probe_follows_no_boundary_unless_asked() -> None:
    with ss.watch(nn.Linear(2, 2), every=1) as probe:
        assert probe.boundaries is None
