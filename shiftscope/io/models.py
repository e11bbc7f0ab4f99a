"""Models by name: from a SPEC on the command line to a module with its weights.

========================== =====================================================================
``package.module:factory`` a function or module class of an installed package
``file.py:factory``        the same in a file, beside the checkpoint or in the working directory
``mlp:sigmoid``            an MLP whose widths are read from the weights; inputs are flattened
``mlp:tanh@actor``         the same, of the weights below ``actor.``
``torchvision:NAME``       a model of torchvision (``torchvision:resnet18``)
``timm:NAME``              a model of timm
``transformers:DIR``       a folder with a Hugging Face ``config.json``; nothing is downloaded
``FILE.pt2``               an exported program
========================== =====================================================================
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from shiftscope.errors import LoadError, UsageError
from shiftscope.io.checkpoints import Checkpoint
from shiftscope.io.exported import load_exported
from shiftscope.io.factories import call_factory, find_file, resolve
from shiftscope.io.fitting import fit
from shiftscope.io.mlp import ACTIVATIONS, build_mlp, select

__all__ = ["FORMS", "LoadedModel", "load_model"]

FORMS = (
    "PACKAGE.MODULE:FACTORY, FILE.py:FACTORY, mlp:ACTIVATION, torchvision:NAME, timm:NAME, "
    "transformers:DIR, FILE.pt2"
)
"""The forms of a model SPEC, for messages."""


@dataclass(frozen=True)
class LoadedModel:
    """A module with the checkpoint's weights.

    Attributes:
        model: The module, in eval mode.
        description: What it is, in one line.
        report: What was done beside loading: values passed, prefixes repaired, conversions.
    """

    model: nn.Module
    description: str
    report: tuple[str, ...] = ()


def load_model(
    spec: str | None,
    checkpoint: Checkpoint | None = None,
    *,
    base: str | Path | None = None,
    trust_pickle: bool = False,
) -> LoadedModel:
    """Build the model a SPEC names and load the weights into it, strictly.

    Args:
        spec: See the table above; None uses the model that the checkpoint itself brings.
        checkpoint: The weights; None leaves the model as its factory made it.
        base: Folder for relative files; the working directory. The checkpoint's folder is searched
            as well.
        trust_pickle: Passed on for ``.pt2`` files.

    Returns:
        The model, in eval mode.

    Raises:
        UsageError: The SPEC cannot be meant, or names what does not exist.
        LoadError: The factory fails, or weights and model do not belong together.
    """
    if not spec:
        return _own_model(checkpoint)
    folders = [Path(base) if base is not None else Path.cwd()]
    if checkpoint is not None:
        folders.append(checkpoint.path.absolute().parent)
    kind, _, rest = spec.partition(":")
    if spec.endswith(".pt2"):
        return _program(find_file(spec, folders), checkpoint, trust_pickle)
    if kind in _BUILDERS:
        model, description, notes = _BUILDERS[kind](rest, checkpoint, folders)
    elif rest:
        model, description, notes = _from_factory(spec, checkpoint, folders)
    else:
        raise UsageError(f"{spec!r} is no model SPEC", f"use one of {FORMS}")
    if checkpoint is not None:
        state = select(checkpoint.state, rest.partition("@")[2] if kind == "mlp" else "")
        notes = [*notes, *fit(model, state, checkpoint.path.name)]
    return LoadedModel(_in_eval(model), description, tuple(notes))


def _own_model(checkpoint: Checkpoint | None) -> LoadedModel:
    if checkpoint is not None and checkpoint.program is not None:
        return LoadedModel(checkpoint.program.module(), f"exported program {checkpoint.path.name}")
    if checkpoint is not None and checkpoint.module is not None:
        name = type(checkpoint.module).__name__
        return LoadedModel(checkpoint.module.eval(), f"pickled module {name}")
    raise UsageError("the checkpoint holds weights only: the model is not known", f"use {FORMS}")


def _program(path: Path, checkpoint: Checkpoint | None, trust_pickle: bool) -> LoadedModel:
    model = load_exported(path, trust_pickle=trust_pickle).module()
    other = checkpoint is not None and checkpoint.path.resolve() != path
    notes = fit(model, checkpoint.state, checkpoint.path.name) if checkpoint and other else []
    return LoadedModel(model, f"exported program {path.name}", tuple(notes))


def _in_eval(model: nn.Module) -> nn.Module:
    with suppress(NotImplementedError):  # a module of an exported program has one mode only
        model.eval()
    return model


_Built = tuple[nn.Module, str, list[str]]


def _from_mlp(rest: str, checkpoint: Checkpoint | None, folders: Sequence[Path]) -> _Built:
    activation, _, part = rest.partition("@")
    if checkpoint is None:
        raise UsageError("mlp: needs a checkpoint to read the widths from", "give one")
    if not activation:
        raise UsageError("mlp: needs an activation", f"use one of {', '.join(ACTIVATIONS)}")
    model = build_mlp(checkpoint.state, activation, part)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    widths = "-".join(str(w) for w in (layers[0].in_features, *(m.out_features for m in layers)))
    left = len(checkpoint.state) - len(select(checkpoint.state, part))
    notes = [f"{left} tensors outside of {part!r} left out, as asked"] if left else []
    return model, f"MLP {widths}, {activation}", notes


def _from_factory(spec: str, checkpoint: Checkpoint | None, folders: Sequence[Path]) -> _Built:
    found, shown = resolve(spec, folders)
    if isinstance(found, nn.Module):
        return found, shown, []
    if not callable(found):
        raise UsageError(f"{shown} is a {type(found).__name__}, not a function or class", FORMS)
    model, passed = call_factory(
        found, shown, _hyper_parameters(checkpoint), "hyper_parameters of the checkpoint"
    )
    if not isinstance(model, nn.Module):
        raise LoadError(
            f"{shown} returns a {type(model).__name__}, not a torch.nn.Module",
            "return the model from the factory",
        )
    told = ", ".join(f"{name}={value!r}" for name, value in passed.items())
    return model, shown, [f"{told:.300} taken from the checkpoint"] if passed else []


def _hyper_parameters(checkpoint: Checkpoint | None) -> dict[str, Any]:
    extras = checkpoint.extras if checkpoint is not None else {}
    for key in ("hyper_parameters", "hparams", "config", "model_args"):
        if isinstance(extras.get(key), dict):
            return dict(extras[key])
    return {}


def _classes(model: nn.Module, checkpoint: Checkpoint | None) -> dict[str, int]:
    """Outputs of the classifier in the file, where only they differ from a fresh model's."""
    wanted, state = model.state_dict(), checkpoint.state if checkpoint is not None else {}
    other = {
        len(state[name])
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
        if state[name].dim() and state[name].shape[1:] == tensor.shape[1:]
    }
    return {"num_classes": other.pop()} if len(other) == 1 else {}


def _zoo(
    package: str, build: Callable[[ModuleType, str, dict[str, int]], Any]
) -> Callable[[str, Checkpoint | None, Sequence[Path]], _Built]:
    """A builder for a package of named models."""

    def from_zoo(name: str, checkpoint: Checkpoint | None, _: Sequence[Path]) -> _Built:
        module = _optional_package(package)
        try:
            model = build(module, name, {})
            options = _classes(model, checkpoint)
            model = build(module, name, options) if options else model
        except Exception as error:
            # Both packages raise their own types for unknown names
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UsageError(
                f"{package} cannot build {name!r}: {lines[0]:.200}",
                f"see the list of models of {package}",
            ) from None
        told = [f"{key}={value} read from the weights" for key, value in options.items()]
        return model, f"{package} {name}", told

    return from_zoo


def _optional_package(package: str) -> ModuleType:
    try:
        return importlib.import_module(package.partition(" ")[0])
    except ImportError as error:
        raise UsageError(
            f"the model SPEC needs the package {package}, which cannot be imported: {error!s:.150}",
            f"pip install {package}",
        ) from None


def _from_transformers(rest: str, _: Checkpoint | None, folders: Sequence[Path]) -> _Built:
    config = find_file(f"{rest}/config.json", folders)
    transformers = _optional_package("transformers")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        named = (content.get("architectures") or [""])[0]
        settings = transformers.AutoConfig.from_pretrained(
            str(config.parent), local_files_only=True, trust_remote_code=False
        )
        model = getattr(transformers, named or "AutoModel", transformers.AutoModel)
        built = model(settings) if named else model.from_config(settings)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise LoadError(
            f"transformers cannot build the model of {config}: {lines[0]:.200}",
            "models with code of their own need FILE.py:FACTORY",
        ) from None
    return built, f"transformers {named or type(built).__name__}", []


_BUILDERS: dict[str, Callable[[str, Checkpoint | None, Sequence[Path]], _Built]] = {
    "mlp": _from_mlp,
    "torchvision": _zoo(
        "torchvision", lambda m, name, options: m.models.get_model(name, weights=None, **options)
    ),
    "timm": _zoo(
        "timm", lambda m, name, options: m.create_model(name, pretrained=False, **options)
    ),
    "transformers": _from_transformers,
}
