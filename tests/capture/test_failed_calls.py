"""Calls that fail before their layer has run anything, and whose error the model catches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.capture import hooks, probe
from shiftscope.capture.mode import PlainMode


@pytest.fixture(params=["compiled", "python"], autouse=True)
def calls_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls are recorded by compiled code where it is built, and by Python."""
    if request.param == "python":
        monkeypatch.setattr(probe, "Mode", PlainMode)
        monkeypatch.setattr(hooks, "entered", lambda *_: False)
        monkeypatch.setattr(hooks, "left", lambda *_: False)
    return


CALLS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Any]]] = {
    "output size": (
        lambda: nn.ConvTranspose1d(3, 3, 3, stride=2),
        lambda layer, x: layer(x, output_size=[100]),
    ),
    "more arguments": (lambda: nn.Linear(4, 4), lambda layer, x: layer(x, x)),
    "unknown keyword": (lambda: nn.Tanh(), lambda layer, x: layer(x, mask=None)),
    "no argument": (lambda: nn.Linear(4, 4), lambda layer, x: layer()),
    "no tensor": (lambda: nn.Linear(4, 4), lambda layer, x: layer(None)),
    "of another width": (lambda: nn.Linear(5, 4), lambda layer, x: layer(x)),
}


class Catching(nn.Module):
    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.call, self.last = layer, call, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        try:
            self.call(self.layer, x)
        except (TypeError, ValueError, RuntimeError):
            x = torch.relu(x)
        return torch.sigmoid(self.last(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CALLS)
def test_what_runs_after_a_failed_call_is_not_named_after_it(name: str) -> None:
    make, call = CALLS[name]
    model = Catching(make(), call)
    with ss.watch(model, every=1) as watched:
        for _ in range(3):
            model(torch.randn(6, 3, 4)).sum().backward()
            watched.step()
    for snapshot in (watched.snapshot(), ss.analyze(model, [torch.randn(6, 3, 4)])):
        assert list(snapshot.records) == [":relu", "last", ":sigmoid"]


def test_arguments_by_name_are_recorded_as_others_are() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.fc = nn.ConvTranspose1d(3, 3, 3, stride=2), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.fc(input=self.up(x, output_size=[10])))

    model = Named()
    with ss.watch(model, every=1) as watched:
        for _ in range(3):
            model(torch.randn(6, 3, 4)).sum().backward()
            watched.step()
    assert list(watched.snapshot().sites["site"]) == ["up", "fc", ":relu"]
