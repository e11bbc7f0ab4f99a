"""Exported programs: plain ones load, anything that could run foreign code is refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftscope.errors import LoadError
from shiftscope.io import load_checkpoint, load_model


class Net(nn.Module):
    """Functional calls, a buffer, batch norm, arithmetic on the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, 3)
        self.register_buffer("scale", torch.full((1,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))) * self.scale
        return self.head(nn.functional.gelu(x).flatten(1)) + x.shape[0] * 0.0


def export(path: Path, dynamic: bool) -> nn.Module:
    torch.manual_seed(0)
    model = Net().eval()
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("b", min=2, max=64)},)} if dynamic else {}
    torch.export.save(torch.export.export(model, (torch.randn(4, 2, 6, 6),), **shapes), path)
    return model


@pytest.mark.parametrize("dynamic", [False, True])
def test_plain_programs_load_and_compute_the_same(tmp_path: Path, dynamic: bool) -> None:
    model = export(tmp_path / "net.pt2", dynamic)
    checkpoint = load_checkpoint(tmp_path / "net.pt2")
    assert checkpoint.format == "exported program"
    for name, tensor in checkpoint.state.items():
        assert torch.equal(tensor, model.state_dict()[name])
    x = torch.randn(6 if dynamic else 4, 2, 6, 6)
    for loaded in (load_model(None, checkpoint), load_model("net.pt2", base=tmp_path)):
        torch.testing.assert_close(loaded.model(x), model(x))


def test_weights_of_another_file_go_into_a_program(tmp_path: Path) -> None:
    export(tmp_path / "net.pt2", dynamic=True)
    torch.manual_seed(1)
    other = Net().eval()
    torch.save(other.state_dict(), tmp_path / "other.pt")
    loaded = load_model("net.pt2", load_checkpoint(tmp_path / "other.pt"))
    x = torch.randn(5, 2, 6, 6)
    torch.testing.assert_close(loaded.model(x), other(x))


def rewrite(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The same archive with a changed program."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("models/model.json"):
                program = json.loads(data)
                change(program)
                data = json.dumps(program).encode()
            new.writestr(name, data)


def graph(program: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = program["graph_module"]["graph"]
    return found


def call_system(program: dict[str, Any]) -> None:
    graph(program)["nodes"][0]["target"] = "torch.os.system"


def call_hub(program: dict[str, Any]) -> None:
    graph(program)["nodes"][0]["target"] = "torch.hub.load"


def call_extension(program: dict[str, Any]) -> None:
    graph(program)["nodes"][0]["target"] = "#os:system"


def map_a_file(program: dict[str, Any]) -> None:
    graph(program)["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def pass_an_operator(program: dict[str, Any]) -> None:
    argument = {"as_operator": "torch.os.system"}
    graph(program)["nodes"][0]["inputs"].append({"name": "f", "arg": argument, "kind": 1})


def evaluate(program: dict[str, Any]) -> None:
    size = {"as_expr": {"expr_str": "__import__('os').getpid()", "hint": {"as_int": 4}}}
    graph(program)["tensor_values"]["x"]["sizes"][0] = size


def inject_a_name(program: dict[str, Any]) -> None:
    graph(program)["inputs"][-1]["as_tensor"]["name"] = "x=__import__('os').getpid()"


def inject_a_forward_argument(program: dict[str, Any]) -> None:
    call = program["graph_module"]["module_call_graph"][0]
    call["signature"]["forward_arg_names"] = ["x=print(1)"]


def inject_guards(program: dict[str, Any]) -> None:
    program["guards_code"] = ["__import__('os').getpid()"]


def rebuild_containers(program: dict[str, Any]) -> None:
    spec = '[1, {"type": "collections.defaultdict", "context": "null", "children_spec": []}]'
    program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = spec


def rebuild_containers_with_other_spaces(program: dict[str, Any]) -> None:
    spec = '[1,{"type":"collections.defaultdict","context":"null","children_spec":[]}]'
    program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = spec


CHANGES = [
    rebuild_containers_with_other_spaces,
    call_system,
    call_hub,
    call_extension,
    map_a_file,
    pass_an_operator,
    evaluate,
    inject_a_name,
    inject_a_forward_argument,
    inject_guards,
    rebuild_containers,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_programs_that_could_run_code_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    export(tmp_path / "good.pt2", dynamic=False)
    rewrite(tmp_path / "good.pt2", tmp_path / "bad.pt2", change)
    with pytest.raises(LoadError, match="not plain") as caught:
        load_checkpoint(tmp_path / "bad.pt2")
    assert "--trust-pickle" in caught.value.remedy


def test_an_unchanged_rewrite_loads(tmp_path: Path) -> None:
    """The rewriting of these tests is not what is refused."""
    export(tmp_path / "good.pt2", dynamic=False)
    rewrite(tmp_path / "good.pt2", tmp_path / "same.pt2", lambda program: None)
    assert load_checkpoint(tmp_path / "same.pt2").program is not None


def test_remarks_in_a_program_stay_remarks(tmp_path: Path) -> None:
    """Stack traces are free text, and must not become code of the generated forward."""
    trap = tmp_path / "ran"
    text = f"\n    __import__('os').mkdir({str(trap)!r})\n"

    def change(program: dict[str, Any]) -> None:
        for node in graph(program)["nodes"]:
            node["metadata"]["stack_trace"] += text

    export(tmp_path / "good.pt2", dynamic=False)
    rewrite(tmp_path / "good.pt2", tmp_path / "bad.pt2", change)
    load_model("bad.pt2", base=tmp_path).model(torch.ones(4, 2, 6, 6))
    assert not trap.exists()


def test_a_broken_program_is_told_in_one_line(tmp_path: Path) -> None:
    export(tmp_path / "good.pt2", dynamic=False)
    rewrite(tmp_path / "good.pt2", tmp_path / "bad.pt2", lambda program: program.clear())
    with pytest.raises(LoadError) as caught:
        load_checkpoint(tmp_path / "bad.pt2")
    assert "\n" not in caught.value.reason
