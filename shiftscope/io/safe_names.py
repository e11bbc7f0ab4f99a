"""Names inside checkpoints that stand for plain data, and what they are read as.

``torch.load(weights_only=True)`` refuses every global that torch does not know. Training scripts
keep a few harmless ones beside the weights: a Lightning dictionary, a NumPy scalar, a path. Those,
and only those, are mapped to plain stand-ins defined here; the named code itself is never imported.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch._utils import IMPORT_MAPPING, NAME_MAPPING
from torch._weights_only_unpickler import _get_allowed_globals

__all__ = ["known_to_torch", "stand_ins", "unknown_names"]

_NUMPY_KINDS = "biufcSU"
"""Kinds of NumPy data types whose values are plain: everything but objects and records."""


class _DType:
    """A NumPy data type in a pickle: its code and byte order, nothing else."""

    def __init__(self, code: str = "f8", *_: Any) -> None:
        self.code = code if isinstance(code, str) else code.decode("ascii")
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1] if len(state) > 1 else "="
        self.order = order.decode("ascii") if isinstance(order, bytes) else str(order)

    def resolve(self) -> np.dtype[Any]:
        """The NumPy data type, where its values are plain."""
        dtype = np.dtype(self.code)
        if dtype.kind not in _NUMPY_KINDS:
            raise ValueError(f"NumPy type {dtype} is no plain number or text")
        if self.order == ">":
            return dtype.newbyteorder(">")
        return dtype.newbyteorder("<") if self.order == "<" else dtype


def _scalar(dtype: _DType, raw: bytes | str = b"") -> Any:
    """A NumPy scalar as the Python number it equals."""
    data = raw.encode("latin-1") if isinstance(raw, str) else raw
    return np.frombuffer(data, dtype.resolve(), count=1)[0].item()


class _Array:
    """A NumPy array beside the weights; its values are not needed and not kept."""

    def __setstate__(self, state: Any) -> None:
        self.shape = state[1] if isinstance(state, tuple) and len(state) > 1 else ()


def _array(*_: Any) -> _Array:
    return _Array()


def _path(*parts: Any) -> str:
    """A file system path as text."""
    return "/".join(str(part) for part in parts).replace("//", "/")


def _dictionary(*_: Any) -> OrderedDict[Any, Any]:
    """Any dictionary subclass, without its behaviour (and without a default factory)."""
    return OrderedDict()


_ATTRIBUTE_DICTS = (
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_lite.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)
# A dictionary subclass is created by NEWOBJ, which needs a class, and the restricted unpickler sets
# items on dict, OrderedDict and Counter only: so these names become OrderedDict itself.
_STAND_INS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_ATTRIBUTE_DICTS, OrderedDict),
    "numpy.dtype": _DType,
    "numpy.ndarray": _Array,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    "pathlib.PosixPath": _path,
    "pathlib.WindowsPath": _path,
    "pathlib.PurePosixPath": _path,
    "pathlib._local.PosixPath": _path,
    "collections.defaultdict": _dictionary,
    "builtins.int": int,
    "builtins.float": float,
    "builtins.list": list,
    "builtins.dict": dict,
}


def stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """The entries for :class:`torch.serialization.safe_globals`."""
    return [(value, name) for name, value in _STAND_INS.items()]


def known_to_torch(name: str) -> bool:
    """Whether torch's restricted unpickler accepts the dotted name by itself."""
    return _modern(name) in _get_allowed_globals()


def unknown_names(names: Iterable[str]) -> list[str]:
    """Those of the dotted names that are neither torch's nor stood in for here."""
    return [name for name in names if not known_to_torch(name) and _modern(name) not in _STAND_INS]


def _modern(name: str) -> str:
    """A name of Python 2 (``__builtin__.long``) under today's name, as torch reads it."""
    module, _, last = name.rpartition(".")
    if (module, last) in NAME_MAPPING:
        module, last = NAME_MAPPING[module, last]
    return f"{IMPORT_MAPPING.get(module, module)}.{last}"
