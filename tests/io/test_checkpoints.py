"""Formats and wrappings, each made here and read back."""

from __future__ import annotations

import collections
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shiftscope.errors import LoadError
from shiftscope.io import load_checkpoint


def weights(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict())


def prefixed(prefix: str, seed: int = 0) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights(seed).items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        for name, tensor in expected.items()
    )


def saved(content: object, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


WRAPPINGS: dict[str, tuple[Any, str]] = {
    "plain": (weights(), ""),
    "ordered": (collections.OrderedDict(weights()), ""),
    "dict": ({"state_dict": weights(), "epoch": 3}, "dict['state_dict']"),
    "list": ({"state_dict": [weights()]}, "dict['state_dict'] → list[0]"),
    "tuple": ((weights(), {"lr": 0.1}), "list[0]"),
    "nested": ({"run": {"model": weights()}}, "dict['run'] → dict['model']"),
    "odd name": ({"my_best_thing": weights(), "acc": 1.0}, "dict['my_best_thing']"),
    "parallel": (prefixed("module."), "prefix 'module.'"),
    "compiled": (prefixed("_orig_mod."), "prefix '_orig_mod.'"),
    "lightning": ({"state_dict": prefixed("model.")}, "dict['state_dict'] → prefix 'model.'"),
    "all prefixes": (
        prefixed("model._orig_mod.module."),
        "prefix 'model.' → prefix '_orig_mod.' → prefix 'module.'",
    ),
    "parameters": ({k: nn.Parameter(v) for k, v in weights().items()}, ""),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", WRAPPINGS)
def test_wrappings(tmp_path: Path, name: str, legacy: bool) -> None:
    content, wrapping = WRAPPINGS[name]
    path = saved(content, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
    checkpoint = load_checkpoint(path)
    assert checkpoint.wrapping == wrapping
    assert checkpoint.format == ("torch legacy stream" if legacy else "torch zip")
    assert same(checkpoint.state, weights())
    assert not any(tensor.requires_grad for tensor in checkpoint.state.values())


def test_safetensors_keep_no_order_so_layers_are_counted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stack = nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))
    state = {f"layers.{name}": tensor for name, tensor in stack.state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    assert same(load_checkpoint(tmp_path / "x.safetensors").state, state)


@pytest.mark.parametrize("inner", ["", "model"])
def test_averaged_models_of_torch_lose_their_counter(tmp_path: Path, inner: str) -> None:
    state: dict[str, Any] = {"n_averaged": torch.tensor(3), **prefixed("module.")}
    checkpoint = load_checkpoint(saved({inner: state} if inner else state, tmp_path / "x"))
    assert same(checkpoint.state, weights())
    assert checkpoint.wrapping.endswith("prefix 'module.'")
    other = {"n_averaged": torch.tensor(3), **weights()}
    assert same(load_checkpoint(saved(other, tmp_path / "y")).state, other)


@pytest.mark.parametrize("name", ["adapter_model", "diffusion_pytorch_model"])
def test_folders_of_adapters_and_pipelines(tmp_path: Path, name: str) -> None:
    save_file(weights(), tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert same(load_checkpoint(tmp_path).state, weights())


def test_in_safetensors_the_model_is_a_part_of_the_model(tmp_path: Path) -> None:
    for prefix, wrapping in (("model.", ""), ("module.", "prefix 'module.'")):
        save_file(prefixed(prefix), tmp_path / "x.safetensors")
        checkpoint = load_checkpoint(tmp_path / "x.safetensors")
        assert checkpoint.wrapping == wrapping
        assert same(checkpoint.state, weights() if wrapping else prefixed(prefix))


def test_prefix_of_a_compiled_submodule_comes_off_inside_a_name(tmp_path: Path) -> None:
    state = {"body._orig_mod.0.weight": torch.ones(2, 2), "head.weight": torch.ones(2, 2)}
    checkpoint = load_checkpoint(saved(state, tmp_path / "x"))
    assert list(checkpoint.state) == ["body.0.weight", "head.weight"]


def test_prefix_that_not_all_names_share_stays(tmp_path: Path) -> None:
    state = {"model.weight": torch.ones(2, 2), "head.weight": torch.ones(2, 2)}
    assert list(load_checkpoint(saved(state, tmp_path / "x")).state) == list(state)


def training_checkpoint() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return {
        "ema": weights(1),
        "model": weights(),
        "optimizer": optimizer.state_dict(),
        "trainer": optimizer.state_dict(),
        "rng_state": torch.get_rng_state(),
        "epoch": 7,
        "best": torch.tensor(0.5),
        "config": {"lr": 0.1, "name": "x"},
    }


def test_live_weights_are_taken_before_their_average_and_it_is_told(tmp_path: Path) -> None:
    path = saved(training_checkpoint(), tmp_path / "x")
    checkpoint = load_checkpoint(path)
    assert checkpoint.choices == ("model", "ema")
    assert same(checkpoint.state, weights())
    assert checkpoint.notes == ("took the weights 'model'; the file also holds 'ema'",)
    assert checkpoint.extras == {"epoch": 7, "best": 0.5, "config": {"lr": 0.1, "name": "x"}}
    assert same(load_checkpoint(path, prefer="ema").state, weights(1))


@pytest.mark.parametrize("name", ["upsampler", "upscaler", "semantic", "schema", "swapped"])
def test_words_inside_other_words_mean_nothing(tmp_path: Path, name: str) -> None:
    content = {"a": {"w": torch.zeros(1)}, name: weights()}
    assert load_checkpoint(saved(content, tmp_path / "x")).choices == (name, "a")


@pytest.mark.parametrize("name", ["model_ema", "modelEMA", "ema_state_dict", "teacher", "EMA"])
def test_averaged_weights_come_last(tmp_path: Path, name: str) -> None:
    content = {name: weights(), "a": {"w": torch.zeros(1)}}
    assert load_checkpoint(saved(content, tmp_path / "x")).choices == ("a", name)


def test_a_choice_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    path = saved(training_checkpoint(), tmp_path / "x")
    with pytest.raises(LoadError, match="'swa'") as caught:
        load_checkpoint(path, prefer="swa")
    assert "'model', 'ema'" in caught.value.remedy


def test_the_choice_does_not_depend_on_the_order_in_the_file(tmp_path: Path) -> None:
    big = {"w": torch.zeros(9, 9)}
    for i, content in enumerate(({"a": weights(), "b": big}, {"b": big, "a": weights()})):
        checkpoint = load_checkpoint(saved(content, tmp_path / str(i)))
        assert checkpoint.choices == ("b", "a")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_data_types_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in weights().items()}
    save_file(state, tmp_path / "s")
    for path in (saved(state, tmp_path / "t"), tmp_path / "s"):
        checkpoint = load_checkpoint(path)
        assert {name: t.dtype for name, t in checkpoint.state.items()} == dict.fromkeys(
            state, dtype
        )
        assert checkpoint.dtypes == (str(dtype).removeprefix("torch."),)


def test_weights_saved_on_a_gpu_load_on_the_cpu(tmp_path: Path) -> None:
    """The device is text inside the pickle: written here as CUDA without having one."""
    path = saved(weights(), tmp_path / "x", _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    moved = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert moved != data
    path.write_bytes(moved)
    assert same(load_checkpoint(path).state, weights())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    shared = torch.ones(3, 3)
    state = load_checkpoint(saved({"a": shared, "b": shared}, tmp_path / "x")).state
    assert state["a"].data_ptr() == state["b"].data_ptr()


def test_numpy_scalars_paths_and_dictionaries_of_training_scripts(tmp_path: Path) -> None:
    content = {
        "state_dict": weights(),
        "acc": np.float64(0.75),
        "step": np.int32(12),
        "folder": Path("runs") / "a",
        "counts": collections.defaultdict(int, {"a": 1}),
        "history": np.arange(4.0),
    }
    checkpoint = load_checkpoint(saved(content, tmp_path / "x"))
    assert checkpoint.extras["acc"] == 0.75
    assert checkpoint.extras["step"] == 12
    assert checkpoint.extras["folder"] == str(Path("runs") / "a")
    assert checkpoint.extras["counts"] == {"a": 1}
    assert "history" not in checkpoint.extras


@pytest.mark.parametrize(
    "module",
    [
        "pytorch_lightning.utilities.parsing",
        "lightning.pytorch.utilities.parsing",
        "lightning_fabric.utilities.data",
    ],
)
def test_lightning_attribute_dicts_are_read_without_lightning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    fake = types.ModuleType(module)
    exec_class = type("AttributeDict", (dict,), {"__module__": module})
    fake.AttributeDict = exec_class  # type: ignore[attr-defined]
    parts = module.split(".")
    with monkeypatch.context() as patch:
        for n in range(1, len(parts)):
            patch.setitem(sys.modules, ".".join(parts[:n]), types.ModuleType(parts[n - 1]))
        patch.setitem(sys.modules, module, fake)
        hyper = exec_class(latent_dim=64)
        path = saved({"state_dict": weights(), "hyper_parameters": hyper}, tmp_path / "x")
    checkpoint = load_checkpoint(path)
    assert checkpoint.extras["hyper_parameters"] == {"latent_dim": 64}


def test_allow_list_does_not_outlive_the_load(tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    load_checkpoint(saved(weights(), tmp_path / "x"))
    assert {*torch.serialization.get_safe_globals()} == {*before}  # its order is that of a set


def test_entries_that_are_no_tensors_are_left_out_and_told(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved({**weights(), "version": "1.0"}, tmp_path / "x"))
    assert same(checkpoint.state, weights())
    assert checkpoint.notes == ("1 entries are no tensors and were left out: version",)


def test_sparse_tensors_are_left_out_and_told(tmp_path: Path) -> None:
    state = {**weights(), "adjacency": torch.eye(3).to_sparse()}
    checkpoint = load_checkpoint(saved(state, tmp_path / "x"))
    assert "adjacency" not in checkpoint.state
    assert "'adjacency' has no dense data" in checkpoint.notes[0]


def test_hostile_names_are_only_names(tmp_path: Path) -> None:
    names = ["../../etc/passwd", "<script>", "\x1b[2J", "a\x00b", "x" * 400, "/abs", "__class__"]
    state = {name: torch.zeros(1) for name in names}
    assert list(load_checkpoint(saved(state, tmp_path / "x")).state) == names


def test_suffix_means_nothing(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "x.pt")
    saved(weights(), tmp_path / "x.safetensors")
    assert load_checkpoint(tmp_path / "x.pt").format == "safetensors"
    assert load_checkpoint(tmp_path / "x.safetensors").format == "torch zip"


def shard(folder: Path, kind: str = "safetensors") -> Path:
    """A checkpoint in two shards with its index."""
    names = {name: f"model-0000{1 + (i > 1)}-of-00002.{kind}" for i, name in enumerate(weights())}
    for file in set(names.values()):
        part = {name: weights()[name] for name in weights() if names[name] == file}
        if kind == "safetensors":
            save_file(part, folder / file)
        else:
            saved(part, folder / file)
    stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    index = folder / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_by_index_and_by_folder(tmp_path: Path, kind: str) -> None:
    index = shard(tmp_path, kind)
    for path in (index, tmp_path):
        checkpoint = load_checkpoint(path)
        assert same(checkpoint.state, weights())
        assert checkpoint.format == "sharded index"
        assert checkpoint.notes == ("read from 2 shards",)


def test_folder_with_a_single_file(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    assert same(load_checkpoint(tmp_path).state, weights())


def test_errors_of_the_loader_survive_pickling(tmp_path: Path) -> None:
    with pytest.raises(LoadError) as caught:
        load_checkpoint(tmp_path / "absent")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, again.remedy) == (caught.value.reason, caught.value.remedy)


def test_printing_a_checkpoint_does_not_print_its_weights(tmp_path: Path) -> None:
    assert "tensor(" not in repr(load_checkpoint(saved(weights(), tmp_path / "x")))
