"""Steps of which nothing could be kept: the trace says why, and so does all that is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import shiftscope as ss


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def by_func(model: nn.Module, x: Tensor) -> None:
    """Gradients of the loss of each sample, by torch.func."""

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        out: Tensor = functional_call(model, parameters, (sample,))
        return out.square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(dict(model.named_parameters()), x)
    for name, parameter in model.named_parameters():
        parameter.grad = found[name].mean(0)


def by_call(model: nn.Module, x: Tensor) -> None:
    """Gradients of the loss with respect to parameters that are given."""
    given = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    functional_call(model, given, (x,)).square().sum().backward()
    for name, parameter in model.named_parameters():
        parameter.grad = given[name].grad


def plainly(model: nn.Module, x: Tensor) -> None:
    model(x).square().sum().backward()


def trained(*ways: Callable[[nn.Module, Tensor], None], counted: bool = True) -> ss.Trace:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watched = ss.watch(model, optimizer if counted else None, every=1, window=1)
    with watched as probe:
        for way in ways:
            way(model, torch.randn(6, 4))
            optimizer.step()
            if not counted:
                probe.step()
    return probe.trace


def run(*arguments: str) -> int:
    (script,) = entry_points(group="console_scripts", name="shiftscope")
    code: int = script.load()([*arguments])
    return code


@pytest.mark.parametrize("counted", [True, False])
def test_training_by_torch_func_says_why_nothing_was_measured(
    counted: bool, tmp_path: Path
) -> None:
    trace = trained(by_func, by_func, counted=counted)
    assert len(trace) == 0
    assert trace.sites.empty
    assert "torch.func" in repr(trace)
    trace.save(tmp_path / "run.npz")
    for found in (trace, ss.Trace.load(tmp_path / "run.npz"), trace.phase("train")):
        uses: tuple[Callable[[], Any], ...] = (
            lambda: found.last,  # noqa: B023
            lambda: found.merge(),  # noqa: B023
            lambda: ss.report(found, tmp_path / "report"),  # noqa: B023
            lambda: ss.draw.evolution(found),  # noqa: B023
            lambda: ss.compare(found, found),  # noqa: B023
        )
        for use in uses:
            with pytest.raises(
                ss.UsageError,
                match=r"no .*window: .*\(the model, 0, 1, 2: called under a transform",
            ):
                use()
        assert "torch.func" in ss.findings.diagnosis.verdict(ss.diagnose(found), found)["sentence"]


def test_the_commands_say_it_of_a_saved_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "run.npz")
    trained(by_func).save(file)
    for arguments in (["report", file, "--out", str(tmp_path / "out")], ["compare", file, file]):
        assert run(*arguments) == 2
        out, err = capsys.readouterr()
        assert "under a transform of torch.func" in err
        assert "Traceback" not in out + err


def test_a_run_that_goes_on_by_torch_func_says_where_its_trace_ends(tmp_path: Path) -> None:
    trace = trained(plainly, plainly, by_func)
    assert trace.steps == (0, 1)
    assert "torch.func" in trace.missed["train"][0]
    ss.report(trace, tmp_path, formats=("html", "json"))
    sentence = (
        "Of the latest recorded steps of training no site was kept: nothing could be measured"
    )
    assert sentence in (tmp_path / "report.html").read_text()
    told = json.loads((tmp_path / "report.json").read_text())["missed"]
    assert told == {"train": trace.missed["train"][0]}


def test_what_is_measured_again_is_missed_no_more() -> None:
    assert trained(by_func, plainly).missed == {}
    assert trained(plainly, lambda *_: None, plainly).missed == {}


def test_functional_calls_without_a_transform_are_measured() -> None:
    trace = trained(by_call, by_call)
    assert list(trace.last.records) == ["0", "1", "2"]
    assert trace.last.gaps == ()
    assert trace.last.neurons["grad_z_var"].notna().all()
