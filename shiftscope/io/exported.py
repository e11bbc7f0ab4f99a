"""Programs of ``torch.export.save`` (``.pt2``), vetted before torch unpacks them.

``torch.export.load`` is not safe on foreign files: it falls back to unrestricted pickle, evaluates
shape expressions as Python, resolves operators as attributes of ``torch`` and writes names into
generated source. :func:`load_exported` therefore admits a program only if every pickle in the
archive holds tensors alone, every operator is an ATen one (or plain arithmetic), every name is an
identifier and every expression plain integer arithmetic. Anything else needs ``trust_pickle``.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from shiftscope.errors import LoadError
from shiftscope.io.bounds import Budget, check_archive
from shiftscope.io.formats import ZIP_ERRORS
from shiftscope.io.torch_files import load_bytes

__all__ = ["load_exported"]

_TRUST = (
    "if you trust its author with your machine, allow it (--trust-pickle); or save a state_dict"
)
_DAMAGED = "export it again with torch.export.save and the torch version in use"

_WORD = r"[A-Za-z_][A-Za-z0-9_]*"
_NAMES = re.compile(r"[A-Za-z0-9_.]*(\[[A-Za-z0-9_.]*\])*")
_OPERATOR = re.compile(rf"torch\.ops\.aten\.({_WORD})\.({_WORD})")
_ARITHMETIC = frozenset(
    f"_operator.{name}"
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge")
) | {"_operator.getitem", "_operator.truediv", "_operator.pow", "_operator.and_", "_operator.or_"}
_EXPRESSION = re.compile(
    r"(Symbol\('[su]\d+'|positive=True|integer=True|nonnegative=True|"
    r"[su]\d+|\d+|Max|Min|Mod|FloorDiv|PythonMod|[-+*/(), ])*"
)
_SPEC_TYPES = frozenset(
    {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
)
_FREE_TEXT = frozenset(
    {"stack_trace", "torch_fn", "nn_module_stack", "source_fn_stack", "from_node"}
)
_UNPICKLED = frozenset({"serialized_state_dict.json", "serialized_constants.json"})
"""Members beside ``*.pt`` that torch hands to its unpickler."""
_SPECS = frozenset({"in_spec", "out_spec"})


def load_exported(path: Path, *, trust_pickle: bool = False) -> torch.export.ExportedProgram:
    """Read an exported program, if it is one that cannot run foreign code.

    Args:
        path: The ``.pt2`` file.
        trust_pickle: Skip the vetting of content (not of sizes).

    Returns:
        The program; ``.module()`` runs it, ``.state_dict`` holds its weights.

    Raises:
        LoadError: Damaged, refused, or written by an incompatible torch.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, Budget(path, path.stat().st_size))
            if not trust_pickle:
                _vet(archive, path)
    except (*ZIP_ERRORS, AttributeError, TypeError) as error:
        raise LoadError(f"{path} is damaged: {error!s:.150}", _DAMAGED) from None
    return _unpack(path)


def _unpack(path: Path) -> torch.export.ExportedProgram:
    logger = logging.getLogger("torch.export")
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            with path.open("rb") as stream:
                return torch.export.load(stream)
    except Exception as error:
        # torch's deserialiser raises any type on a schema it does not know
        line = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise LoadError(
            f"{path} cannot be unpacked by this torch: {line[0]:.200}", _DAMAGED
        ) from None
    finally:
        logger.setLevel(level)


def _vet(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse every member that could run code."""
    for name in archive.namelist():
        leaf = name.partition("/")[2] or name
        if leaf.startswith("data/aotinductor/") or re.search(r"(custom|opaque)_obj", leaf):
            raise _refused(path, f"it holds compiled code or pickled objects ({leaf})")
        head = _head(archive, name)
        if head == _ZIP:
            load_bytes(archive.read(name), path, tensors_only=True)
        elif head and (leaf.endswith(".pt") or leaf in _UNPICKLED):
            raise _refused(path, f"{leaf} is a plain pickle")
        if leaf.endswith("_config.json"):
            _vet_payloads(json.loads(archive.read(name)), archive, name, path)
        elif leaf.startswith("models/") or leaf == "serialized_exported_program.json":
            _vet_program(json.loads(archive.read(name)), path)


_ZIP = b"PK\x03\x04"


def _head(archive: zipfile.ZipFile, name: str) -> bytes:
    """The first four bytes of a member: weights of gigabytes need not be read for that."""
    with archive.open(name) as member:
        return member.read(4)


def _vet_payloads(config: Any, archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """Payloads that torch would unpickle must be torch archives (surveyed with all the others)."""
    folder = name.rpartition("/")[0]
    for entry in config["config"].values():
        file = entry["path_name"]
        if not re.fullmatch(r"[A-Za-z0-9_]+", file):
            raise _refused(path, f"a payload has the file name {file!r}")
        if entry.get("use_pickle") and _head(archive, f"{folder}/{file}") != _ZIP:
            raise _refused(path, f"the payload {file} is a plain pickle")


def _vet_program(program: Any, path: Path) -> None:
    if program.get("guards_code"):
        raise _refused(path, "it brings guards as Python source")
    for key, value in _strings(program, ""):
        reason = _objection(key, value)
        if reason:
            raise _refused(path, reason)


def _strings(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """All texts of a JSON tree with the key they stand under; keys themselves under "name"."""
    if isinstance(node, dict):
        for inner, value in node.items():
            yield "name", inner
            yield from _strings(value, inner)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value, key)
    elif isinstance(node, str):
        yield key, node


def _objection(key: str, value: str) -> str:
    """Why a text may not stand under a key; "" where it may."""
    if key in {"target", "as_operator"}:
        return "" if _harmless_operator(value) else f"it calls {value!r}"
    if key == "expr_str":
        return "" if _EXPRESSION.fullmatch(value) else f"it evaluates {value!r}"
    if key in _SPECS:
        types = {text for name, text in _strings(json.loads(value), "") if name == "type"}
        return "" if types <= _SPEC_TYPES else f"it rebuilds containers {sorted(types)}"
    if key in _FREE_TEXT or key in {"torch_version", "as_string"}:
        return ""
    return "" if _NAMES.fullmatch(value) else f"it uses the name {value!r}"


def _harmless_operator(target: str) -> bool:
    """An ATen operator that touches no file, or arithmetic on sizes."""
    if target in _ARITHMETIC:
        return True
    match = _OPERATOR.fullmatch(target)
    packet = getattr(torch.ops.aten, match[1], None) if match else None
    operator = getattr(packet, match[2], None) if match and packet is not None else None
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    return not any("file" in argument.name for argument in operator._schema.arguments)


def _refused(path: Path, reason: str) -> LoadError:
    return LoadError(f"{path} is an exported program that is not plain: {reason}; refused", _TRUST)
