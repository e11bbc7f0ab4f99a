"""Model SPECs: what is built, how the weights get in, and what is said where they do not."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import types
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftscope.errors import LoadError, ShiftscopeError, UsageError
from shiftscope.io import Checkpoint, LoadedModel, load_checkpoint, load_model

NET = """
    import helper_beside_net
    from torch import nn

    class Net(nn.Module):
        def __init__(self, width=8):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

        def forward(self, x):
            return self.model(x)

    def build():
        import late_helper_beside_net

        return helper_beside_net.widened(Net, 8)

    def flat(width=8):
        return Net(width).model

    def needs(width, depth):
        return Net(width)

    def normed():
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def nothing():
        return None

    def failing():
        raise RuntimeError("no such luck")

    ready = Net(8)
    number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(textwrap.dedent(NET))
    (tmp_path / "helper_beside_net.py").write_text("def widened(net, width): return net(width)\n")
    (tmp_path / "late_helper_beside_net.py").write_text("")
    (tmp_path / "broken.py").write_text("from torch import nn\n\nx = undefined\n")
    (tmp_path / "syntax.py").write_text("def build(:\n")
    (tmp_path / "leaving.py").write_text("import sys; sys.exit(3)\n")
    return tmp_path


def sequential(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def checkpoint(folder: Path, state: Any = None, name: str = "x.pt") -> Checkpoint:
    torch.save(sequential().state_dict() if state is None else state, folder / name)
    return load_checkpoint(folder / name)


def gives(loaded: LoadedModel, expected: nn.Module) -> bool:
    x = torch.randn(5, 4)
    return torch.equal(loaded.model(x), expected(x))


@pytest.mark.parametrize("name", ["build", "Net", "flat", "ready"])
def test_factories_in_a_file_beside_the_checkpoint(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    path = list(sys.path)
    loaded = load_model(f"net.py:{name}", checkpoint(folder))
    assert gives(loaded, sequential())
    assert not loaded.model.training
    assert sys.path == path
    assert str(folder / "net.py") in loaded.description


def test_works_from_any_working_directory_in_a_fresh_process(
    folder: Path, tmp_path_factory: Any
) -> None:
    checkpoint(folder)
    code = (
        "import sys; from shiftscope.io import *\n"
        "c = load_checkpoint(sys.argv[1]); print(type(load_model('net.py:build', c).model))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "x.pt")],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Net" in done.stdout


def test_base_comes_before_the_folder_of_the_checkpoint(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "net.py").write_text("build = 3")
    with pytest.raises(UsageError, match="is a int"):
        load_model("net.py:build", checkpoint(folder), base=folder / "other")


def test_module_of_a_package_and_absolute_file(folder: Path) -> None:
    weights = checkpoint(folder, nn.Flatten(1).state_dict() | {"weight": torch.ones(1)})
    loaded = load_model("torch.nn:PReLU", weights)
    assert loaded.model.weight.item() == 1.0
    absolute = load_model(f"{folder / 'net.py'}:build", checkpoint(folder), base="/")
    assert gives(absolute, sequential())


def test_hyper_parameters_of_the_checkpoint_reach_the_factory(folder: Path) -> None:
    content = {
        "state_dict": {f"model.{k}": v for k, v in sequential(6).state_dict().items()},
        "hyper_parameters": {"width": 6, "unrelated": 1},
    }
    loaded = load_model("net.py:Net", checkpoint(folder, content))
    assert gives(loaded, sequential(6))
    assert loaded.report == (
        "width=6 taken from the checkpoint",
        "prefix 'model.' put back before every name",
    )
    with pytest.raises(UsageError, match="needs depth"):
        load_model("net.py:needs", checkpoint(folder, content))


def test_prefix_that_only_the_file_has_is_taken_off(folder: Path) -> None:
    state = {f"backbone.{name}": t for name, t in sequential().state_dict().items()}
    loaded = load_model("net.py:flat", checkpoint(folder, state))
    assert gives(loaded, sequential())
    assert loaded.report == ("prefix 'backbone.' taken off every name",)


def test_differences_are_listed_and_nothing_is_loaded(folder: Path) -> None:
    state = dict(sequential().state_dict())
    state["extra.weight"] = state.pop("0.bias")
    state["2.weight"] = torch.ones(3, 9)
    with pytest.raises(LoadError) as caught:
        load_model("net.py:flat", checkpoint(folder, state))
    reason = caught.value.reason
    assert "1 missing (0.bias)" in reason
    assert "1 unexpected (extra.weight)" in reason
    assert "1 of another shape (2.weight [3, 9] in the file, [3, 8] in the model)" in reason


def test_a_failed_fit_leaves_the_model_as_it_was(folder: Path) -> None:
    from shiftscope.io.fitting import fit

    model = sequential()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: torch.zeros_like(t) for name, t in before.items() if name != "2.bias"}
    with pytest.raises(LoadError, match=r"1 missing \(2\.bias\)"):
        fit(model, state, "x")
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_long_lists_are_cut_and_counted(folder: Path) -> None:
    state = {f"layer{i}.weight": torch.ones(1) for i in range(30)}
    with pytest.raises(LoadError, match=r"30 unexpected \(.*layer9\.weight, …\)"):
        load_model("net.py:flat", checkpoint(folder, state))


def test_counters_of_batch_norm_may_be_absent(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    loaded = load_model("net.py:normed", checkpoint(folder, state))
    assert torch.equal(loaded.model[1].running_var, model[1].running_var)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_conversions_are_told(folder: Path, dtype: str) -> None:
    state = {k: v.to(getattr(torch, dtype)) for k, v in sequential().state_dict().items()}
    loaded = load_model("net.py:flat", checkpoint(folder, state))
    assert loaded.report == (f"weights stored as {dtype}, used as float32",)


BAD: list[tuple[str, type[ShiftscopeError], str]] = [
    ("resnet18", UsageError, "'resnet18' is no model SPEC"),
    (":build", UsageError, "names no factory"),
    ("net.py:", UsageError, "is no model SPEC"),
    ("nowhere.py:build", UsageError, r"nowhere\.py does not exist \(looked in"),
    ("net.py:absent", UsageError, "has no 'absent'"),
    ("net.py:number", UsageError, "is a int"),
    ("net.py:nothing", LoadError, "returns a NoneType"),
    ("net.py:failing", LoadError, r"RuntimeError \(net\.py, line \d+\): no such luck"),
    ("net.py:needs", UsageError, "needs width, depth"),
    ("broken.py:build", LoadError, r"NameError \(broken\.py, line 3\): name 'undefined'"),
    ("syntax.py:build", LoadError, "SyntaxError"),
    ("leaving.py:build", LoadError, "SystemExit"),
    ("no_such_package.x:build", UsageError, "no module 'no_such_package.x'"),
    ("torch.nn:Nothing", UsageError, "has no 'Nothing'"),
    ("nowhere.pt2", UsageError, "does not exist"),
    ("mlp:", UsageError, "needs an activation"),
    ("mlp:sigmoidal", UsageError, "no activation of that name"),
    ("mlp:tanh@encoder", UsageError, "no weights below 'encoder'"),
    ("torchvision:resnet18", UsageError, "needs the package torchvision"),
    ("timm:resnet18", UsageError, "needs the package timm"),
    ("transformers:nowhere", UsageError, "config.json does not exist"),
]


@pytest.mark.parametrize(("spec", "error", "says"), BAD, ids=[case[0] for case in BAD])
def test_bad_specs(
    folder: Path,
    spec: str,
    error: type[ShiftscopeError],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in ("torchvision", "timm", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(error, match=says) as caught:
        load_model(spec, checkpoint(folder))
    assert caught.value.remedy
    assert "\n" not in caught.value.reason


def test_weights_alone_have_no_model(folder: Path) -> None:
    with pytest.raises(UsageError, match="weights only"):
        load_model(None, checkpoint(folder))


# The MLP


def mlp_state(prefix: str, step: int, bias: bool = True) -> tuple[nn.Sequential, dict[str, Tensor]]:
    torch.manual_seed(3)
    widths = [6, 5, 4, 3]
    layers = [nn.Linear(a, b, bias=bias) for a, b in pairwise(widths)]
    reference = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
    state = {
        f"{prefix}{step * i}.{name}": tensor
        for i, layer in enumerate(layers)
        for name, tensor in layer.state_dict().items()
    }
    return reference, state


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("prefix", ["", "layers.", "encoder.net.", "fc"])
def test_mlp_has_the_weights_names_and_function(
    folder: Path, prefix: str, step: int, bias: bool
) -> None:
    reference, state = mlp_state(prefix, step, bias)
    loaded = load_model("mlp:gelu", checkpoint(folder, state))
    x = torch.randn(7, 2, 3)
    assert torch.equal(loaded.model(x), reference(x.flatten(1)))
    assert list(loaded.model.state_dict()) == list(state)
    assert loaded.description == "MLP 6-5-4-3, gelu"
    kinds = [type(module).__name__ for module in loaded.model.modules()]
    assert kinds.count("GELU") == 2


def test_activations_of_an_mlp_stand_in_the_gaps_of_the_sequential(folder: Path) -> None:
    _, state = mlp_state("layers.", 2)
    model = load_model("mlp:gelu", checkpoint(folder, state)).model
    assert isinstance(model.get_submodule("layers.1"), nn.GELU)
    _, state = mlp_state("fc", 1)
    model = load_model("mlp:gelu", checkpoint(folder, state)).model
    assert isinstance(model.get_submodule("fc0_activation"), nn.GELU)


def test_layers_of_an_mlp_are_ordered_by_number(folder: Path) -> None:
    layers = {f"{i}.weight": torch.full((2, 2), float(i)) for i in (0, 10, 2)}
    model = load_model("mlp:identity", checkpoint(folder, layers)).model
    assert [name for name, m in model.named_modules() if isinstance(m, nn.Linear)] == [
        "0",
        "2",
        "10",
    ]


def test_half_precision_mlp_computes_in_single(folder: Path) -> None:
    _, state = mlp_state("", 2)
    halves = {name: tensor.half() for name, tensor in state.items()}
    loaded = load_model("mlp:gelu", checkpoint(folder, halves))
    assert loaded.model(torch.randn(2, 6)).dtype == torch.float32
    doubles = {name: tensor.double() for name, tensor in state.items()}
    assert (
        load_model("mlp:gelu", checkpoint(folder, doubles))
        .model(torch.randn(2, 6, dtype=torch.float64))
        .dtype
        == torch.float64
    )


def test_building_an_mlp_leaves_the_random_state_alone(folder: Path) -> None:
    weights = checkpoint(folder)
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    load_model("mlp:relu", weights)
    assert torch.equal(torch.get_rng_state(), expected)


NOT_MLPS = [
    ({"c.weight": torch.ones(3, 2, 3, 3)}, r"c\.weight \[3, 2, 3, 3\]"),
    ({"a.weight": torch.ones(3, 2), "n.running_mean": torch.ones(3)}, "running_mean"),
    ({"a.weight": torch.ones(3, 2), "b.weight": torch.ones(3, 2)}, "gives 3 features, b takes 2"),
    (
        {"a.weight": torch.ones(3, 2), "a.bias": torch.ones(2)} | {"b.weight": torch.ones(1, 3)},
        "a.bias has shape",
    ),
    ({"table": torch.ones(3, 2)}, "table"),
]


def test_a_tied_tensor_may_stand_in_the_file_once(folder: Path) -> None:
    (folder / "tied.py").write_text(
        "from torch import nn\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)\n"
        "        self.head.weight = self.table.weight\n"
    )
    weight = torch.randn(5, 4)
    for name in ("table.weight", "head.weight"):
        loaded = load_model("tied.py:Net", checkpoint(folder, {name: weight}))
        assert torch.equal(loaded.model.head.weight, weight)  # type: ignore[arg-type, union-attr]
        assert loaded.model.head.weight is loaded.model.table.weight  # type: ignore[union-attr]
        assert "other name of a tied tensor" in loaded.report[0]
    (folder / "headed.py").write_text(
        "from torch import nn\nfrom tied import Net\n\n"
        "class Headed(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.model, self.head = Net(), nn.Linear(4, 5, bias=False)\n"
        "        self.model.head, self.head.weight = None, self.model.table.weight\n"
    )
    alone = checkpoint(folder, {"model.table.weight": weight})  # as small language models are saved
    assert alone.wrapping == "prefix 'model.'"
    assert torch.equal(load_model("headed.py:Headed", alone).model.head.weight, weight)  # type: ignore[arg-type, union-attr]
    wrapped = checkpoint(folder, {"net.table.weight": weight})
    assert torch.equal(load_model("tied.py:Net", wrapped).model.table.weight, weight)  # type: ignore[arg-type, union-attr]
    torn = {"table.weight": weight, "head.weight": weight + 1}
    with pytest.raises(LoadError, match="are one tensor in Net and differ in") as caught:
        load_model("tied.py:Net", checkpoint(folder, torn))
    assert "without tying" in caught.value.remedy
    with pytest.raises(LoadError, match="2 missing"):
        load_model("tied.py:Net", checkpoint(folder, {"other.x": weight}))


def test_a_factory_may_load_an_exported_program(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: nn.Module) -> nn.Module:
        raise NotImplementedError("Calling eval() is not supported yet.")

    monkeypatch.setattr(nn.Sequential, "eval", refuse)
    assert gives(load_model("net.py:build", checkpoint(folder)), sequential())


@pytest.mark.parametrize(("state", "says"), NOT_MLPS)
def test_what_is_no_mlp_is_told(folder: Path, state: dict[str, Tensor], says: str) -> None:
    with pytest.raises(LoadError, match=says):
        load_model("mlp:relu", checkpoint(folder, state))


# Model zoos, which need not be installed: stand-ins with their interfaces


def test_torchvision_and_timm_are_asked_for_fresh_models_with_the_right_head(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def make(name: str, **options: object) -> nn.Module:
        asked.append((name, options))
        if name != "net":
            raise ValueError(f"Unknown model {name}")
        model = sequential()
        *_, head = (m for m in model.modules() if isinstance(m, nn.Linear))
        if options.get("num_classes") is None:
            head.weight, head.bias = (
                nn.Parameter(torch.zeros(9, *p.shape[1:])) for p in (head.weight, head.bias)
            )
        return model

    vision, timm = types.ModuleType("torchvision"), types.ModuleType("timm")
    vision.models = types.SimpleNamespace(get_model=make)  # type: ignore[attr-defined]
    timm.create_model = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    monkeypatch.setitem(sys.modules, "timm", timm)
    for package in ("torchvision", "timm"):
        assert gives(load_model(f"{package}:net", checkpoint(folder)), sequential())
        with pytest.raises(UsageError, match="cannot build 'nut': Unknown model"):
            load_model(f"{package}:nut", checkpoint(folder))
    assert asked[:2] == [("net", {"weights": None}), ("net", {"weights": None, "num_classes": 3})]
    assert asked[4] == ("net", {"pretrained": False, "num_classes": 3})


def test_transformers_reads_a_local_folder_and_runs_no_code_from_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    def settings(path: str, **options: object) -> str:
        asked.append(options)
        return path

    fake = types.ModuleType("transformers")
    fake.AutoConfig = types.SimpleNamespace(from_pretrained=settings)  # type: ignore[attr-defined]
    fake.AutoModel = object  # type: ignore[attr-defined]
    fake.MyModel = lambda config: sequential()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", fake)
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text('{"architectures": ["MyModel"]}')
    assert gives(load_model("transformers:hf", checkpoint(folder)), sequential())
    assert asked == [{"local_files_only": True, "trust_remote_code": False}]
