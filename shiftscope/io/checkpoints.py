"""One door for checkpoints: any format, any wrapping, never code.

>>> checkpoint = load_checkpoint("model.pth")  # doctest: +SKIP
>>> checkpoint.wrapping  # doctest: +SKIP
"dict['state_dict'] → list[0] → prefix 'module.'"
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from shiftscope.errors import LoadError
from shiftscope.io.bounds import Budget
from shiftscope.io.dcp import load_dcp
from shiftscope.io.exported import load_exported
from shiftscope.io.formats import Format, folder_member, sniff
from shiftscope.io.tensor_files import load_safetensors, load_sharded
from shiftscope.io.torch_files import load_torch_file
from shiftscope.io.unwrap import Candidate, find_states, plain_values, strip_prefixes

__all__ = ["Checkpoint", "load_checkpoint"]

_COUNTER = "n_averaged"


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a file, and what stood around them.

    Attributes:
        path: The file or folder.
        state: Name -> tensor on the CPU, in file order (safetensors, which keep none: layer 2
            before layer 10); names without wrapper prefixes.
        format: The format, by content.
        wrapping: What was taken off to get at the weights, "" for a plain state dict.
        choices: Names of all state dicts in the file, the chosen one first.
        extras: Small plain values beside the weights (epoch, accuracy, hyper_parameters, ...).
        notes: What the user should know: a choice made, entries left out.
        left_out: Names of the entries beside the weights that are no tensors.
        program: The exported program of a ``.pt2`` file.
        module: The module of a whole-module pickle, read with ``trust_pickle``.
    """

    path: Path
    state: dict[str, torch.Tensor] = field(repr=False)
    format: str
    wrapping: str = ""
    choices: tuple[str, ...] = ()
    extras: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    program: torch.export.ExportedProgram | None = field(default=None, repr=False)
    module: torch.nn.Module | None = field(default=None, repr=False)

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(tensor.numel() for tensor in self.state.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The data types of the tensors (``float32``), most common first."""
        names = [str(tensor.dtype).removeprefix("torch.") for tensor in self.state.values()]
        return tuple(sorted(dict.fromkeys(names), key=lambda name: -names.count(name)))


def load_checkpoint(
    path: str | Path, *, trust_pickle: bool = False, prefer: str | None = None
) -> Checkpoint:
    """Read the weights of a checkpoint without running anything in it.

    Reads torch zip archives and older streams, Lightning checkpoints, safetensors (alone and in
    shards), exported programs and folders of torch.distributed.checkpoint. State dicts are found
    inside training dictionaries and lists; prefixes of wrappers come off the names.

    Args:
        path: File or folder.
        trust_pickle: Let a pickle run code where nothing else will read it.
        prefer: Which state dict to take where there are several: one of `Checkpoint.choices`, or
            its last key (``"ema"``).

    Returns:
        The checkpoint.

    Raises:
        LoadError: It cannot be read, is refused, or holds no named tensors.
    """
    path = Path(path)
    try:
        return _load(path, trust_pickle, prefer)
    except OSError as error:
        raise LoadError(
            f"{path} cannot be read: {error.strerror or error}", "check the file and its disk"
        ) from None


def _load(path: Path, trust_pickle: bool, prefer: str | None) -> Checkpoint:
    kind = sniff(path)
    if kind is Format.SHARDED and path.is_dir():
        return _in_folder(path, trust_pickle, prefer)
    if kind is Format.EXPORTED:
        return _exported(path, trust_pickle)
    content, notes = _content(path, kind, trust_pickle)
    if isinstance(content, torch.nn.Module):
        module, content = content, content.state_dict()
    else:
        module = None
    found = _checkpoint(path, kind, content, notes, prefer)
    return replace(found, module=module) if module is not None else found


def _in_folder(path: Path, trust_pickle: bool, prefer: str | None) -> Checkpoint:
    member = folder_member(path)
    if member is None:
        raise LoadError(f"{path} holds no weights", "name the checkpoint file inside it")
    return load_checkpoint(member, trust_pickle=trust_pickle, prefer=prefer)


def _content(path: Path, kind: Format, trust_pickle: bool) -> tuple[Any, list[str]]:
    if kind is Format.SAFETENSORS:
        return load_safetensors(path), []
    if kind is Format.SHARDED:
        state, shards = load_sharded(
            path, lambda shard: load_torch_file(shard, sniff(shard), trust_pickle=trust_pickle)
        )
        return state, [f"read from {shards} shards"]
    if kind is Format.DCP:
        state, others = load_dcp(path)
        left = [f"{len(others)} entries that are no tensors were left out"] if others else []
        return _nested(state), left
    return load_torch_file(path, kind, trust_pickle=trust_pickle), []


def _nested(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Distributed checkpoints flatten {"model": ..., "optim": ...}: put the top level back."""
    tops = {name.partition(".")[0] for name in state}
    if not any(top.startswith("optim") for top in tops):
        return dict(state)
    nested: dict[str, Any] = {}
    for name, tensor in state.items():
        top, _, rest = name.partition(".")
        nested.setdefault(top, {})[rest or top] = tensor
    return nested


def _checkpoint(
    path: Path, kind: Format, content: Any, notes: list[str], prefer: str | None
) -> Checkpoint:
    candidates = find_states(content)
    if not candidates:
        raise LoadError(
            f"{path} holds no named tensors: {_describe(content)}",
            "save model.state_dict(), alone or in a dictionary",
        )
    chosen = _choose(path, candidates, prefer)
    notes += _told(chosen, [c for c in candidates if c is not chosen])
    tensors, dropped = _usable(path, _without_counter(chosen.tensors))
    # Lightning writes no safetensors: there "model." is a part of the model.
    wrapped = kind not in (Format.SAFETENSORS, Format.SHARDED)
    names, prefixes = strip_prefixes(list(tensors), lightning=wrapped)
    steps = [chosen.route] if chosen.path else []
    steps += [f"prefix {prefix!r}" for prefix in prefixes]
    ordered = [chosen, *(c for c in candidates if c is not chosen)]
    return Checkpoint(
        path=path,
        state={names[old]: tensor for old, tensor in tensors.items()},
        format=_format(kind, content),
        wrapping=" → ".join(steps),
        choices=tuple(candidate.name for candidate in ordered),
        extras=_beside(content, candidates),
        notes=tuple(notes + dropped),
        left_out=tuple(_without(name, prefixes) for name in chosen.others),
    )


def _without(name: str, prefixes: list[str]) -> str:
    """A name without the wrapper prefixes that were taken off the names of tensors."""
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def _without_counter(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the number that ``torch.optim.swa_utils.AveragedModel`` keeps beside its module."""
    rest = {name: tensor for name, tensor in tensors.items() if name != _COUNTER}
    return rest if rest and all(name.startswith("module.") for name in rest) else tensors


def _beside(content: Any, candidates: list[Candidate]) -> dict[str, Any]:
    """The plain values that are no part of a state dict."""
    if not isinstance(content, dict) or any(not c.path and not c.others for c in candidates):
        return {}
    weights = {candidate.path[0] for candidate in candidates if candidate.path}
    rest = {k: v for k, v in content.items() if k not in weights and "optim" not in str(k).lower()}
    return plain_values(rest)


def _format(kind: Format, content: Any) -> str:
    version = content.get("pytorch-lightning_version") if isinstance(content, dict) else None
    return f"Lightning {version}, {kind}" if isinstance(version, str) else str(kind)


def _choose(path: Path, candidates: list[Candidate], prefer: str | None) -> Candidate:
    if prefer is None:
        return candidates[0]
    for candidate in candidates:
        if prefer == candidate.name or prefer in candidate.path:
            return candidate
    names = ", ".join(repr(candidate.name) for candidate in candidates)
    raise LoadError(f"{path} has no state dict {prefer!r}", f"choose one of {names}")


def _told(chosen: Candidate, rest: list[Candidate]) -> list[str]:
    notes = []
    if rest:
        others = ", ".join(repr(candidate.name) for candidate in rest)
        notes.append(f"took the weights {chosen.name!r}; the file also holds {others}")
    if chosen.others:
        shown = ", ".join(chosen.others[:5])
        notes.append(f"{len(chosen.others)} entries are no tensors and were left out: {shown}")
    return notes


def _usable(
    path: Path, tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Dense tensors with data; quantised ones as the real numbers they stand for."""
    kept: dict[str, torch.Tensor] = {}
    notes: list[str] = []
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_nested:
            notes.append(f"{name!r} has no dense data ({tensor.layout}) and was left out")
        elif tensor.is_quantized:
            kept[name] = tensor.dequantize()
            notes.append(f"{name!r} is quantised: read as the numbers it stands for")
        else:
            kept[name] = tensor
    stored = path.stat().st_size if path.is_file() else _folder_size(path)
    size = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
    Budget(path, stored).check(size, "its list of tensors")
    return kept, notes


def _folder_size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        keys = ", ".join(repr(str(key)) for key in list(content)[:6])
        return f"a dictionary with the keys {keys}" if keys else "an empty dictionary"
    return f"a {type(content).__name__}"


def _exported(path: Path, trust_pickle: bool) -> Checkpoint:
    program = load_exported(path, trust_pickle=trust_pickle)
    state = {name: tensor.detach() for name, tensor in program.state_dict.items()}
    tensors, notes = _usable(path, state)
    notes.append("an exported program: it brings its own model")
    return Checkpoint(
        path=path,
        state=tensors,
        format=str(Format.EXPORTED),
        choices=("",),
        notes=tuple(notes),
        program=program,
    )
