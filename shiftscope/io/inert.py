"""Reading a pickle as data: what it says, with nothing of it done.

A pickle is a program for a stack machine; the dangerous instructions import a name and call it.
:func:`read_pickle` interprets the instructions of :mod:`pickletools` itself: containers, strings
and numbers become what they are, an imported name becomes a :class:`Name`, a call becomes a
:class:`Call` record. No module is imported and nothing is called, whatever the bytes are. Memory is
bounded by the bytes read, because declared lengths beyond the end of the input are refused.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

__all__ = ["Call", "Name", "PickleError", "Reading", "Reference", "read_pickle"]


class PickleError(ValueError):
    """The bytes are no well-formed pickle."""


@dataclass(frozen=True)
class Name:
    """A global that a real unpickler would import."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """The dotted name, ``module.name``."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """A call that a real unpickler would make, and what it would do to the result."""

    function: Any
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    entries: list[Any] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The dotted name of the called function, "" where it is no plain name."""
        return self.function.path if isinstance(self.function, Name) else ""


@dataclass(eq=False)
class Reference:
    """A persistent id: torch's way to point at a storage."""

    key: Any


@dataclass
class Reading:
    """One pickle, read.

    Attributes:
        value: What it holds, with `Name`, `Call` and `Reference` records inside.
        names: Dotted paths of all globals, in order of appearance.
        calls: All calls, in order.
        references: All persistent ids, in order.
    """

    value: Any = None
    names: dict[str, None] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)


def read_pickle(stream: IO[bytes]) -> Reading:
    """Interpret one pickle without importing or calling anything.

    Args:
        stream: Bytes in memory or a memory map (so that a lying length reads no more than there
            is); left just behind the pickle.

    Returns:
        The reading.

    Raises:
        PickleError: The bytes are no complete pickle.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged text makes pickletools complain of escapes
            machine.run(stream)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise PickleError(f"malformed pickle: {error}") from None
    return machine.reading


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_IGNORED = frozenset({"PROTO", "FRAME", "STOP", "READONLY_BUFFER"})
_MARK = object()


class _Machine:
    """The stack, the memo and the instructions."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.reading = Reading()

    def run(self, stream: IO[bytes]) -> None:
        """Carry out all instructions up to the end of the pickle."""
        for opcode, argument, _ in pickletools.genops(stream):
            self.step(opcode.name, argument)

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one instruction."""
        if opcode == "STOP":
            self.reading.value = self.stack.pop()
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif (handler := getattr(self, f"_{opcode.lower()}", None)) is not None:
            handler(argument)
        elif opcode not in _IGNORED:
            if argument is None:
                raise PickleError(f"instruction {opcode} is not understood")
            self.stack.append(argument)

    def _popmark(self) -> list[Any]:
        """Everything above the topmost mark."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    # Stack and memo
    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._popmark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _binget = _long_binget = _get

    # Containers
    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._popmark()))

    def _tuple1(self, _: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _list(self, _: Any) -> None:
        self.stack.append(self._popmark())

    def _dict(self, _: Any) -> None:
        items = self._popmark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(self._popmark()))

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._popmark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        (target.entries if isinstance(target, Call) else target).extend(items)

    def _additems(self, _: Any) -> None:
        items = self._popmark()
        self.stack[-1].update(items)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _setitems(self, _: Any) -> None:
        self._update(self._popmark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        pairs = zip(items[::2], items[1::2], strict=True)
        (target.items if isinstance(target, Call) else target).update(pairs)

    # Names, calls and persistent ids: recorded, never followed
    def _name(self, module: Any, name: Any) -> None:
        found = Name(str(module), str(name))
        self.reading.names[found.path] = None
        self.stack.append(found)

    def _global(self, argument: str) -> None:
        self._name(*argument.split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._name(module, name)

    def _ext1(self, code: int) -> None:
        self._name("copyreg", f"extension {code}")

    _ext2 = _ext4 = _ext1

    def _call(self, function: Any, args: Any) -> None:
        call = Call(function, tuple(args) if isinstance(args, tuple | list) else (args,))
        self.reading.calls.append(call)
        self.stack.append(call)

    def _reduce(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        data = _spelled_bytes(function, args)
        if data is not None:
            self.stack.append(data)
        else:
            self._call(function, args)

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        keywords, args, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self._call(function, args)
        self.stack[-1].items.update(keywords)

    def _inst(self, argument: str) -> None:
        args = self._popmark()
        self._name(*argument.split(" ", 1))
        self._call(self.stack.pop(), args)

    def _obj(self, _: Any) -> None:
        function, *args = self._popmark()
        self._call(function, args)

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Call):
            self.stack[-1].state = state

    def _persid(self, key: Any) -> None:
        reference = Reference(key)
        self.reading.references.append(reference)
        self.stack.append(reference)

    def _binpersid(self, _: Any) -> None:
        self._persid(self.stack.pop())

    def _next_buffer(self, _: Any) -> None:
        self.stack.append(None)


def _spelled_bytes(function: Any, args: Any) -> bytes | None:
    """Protocols 0 to 2 have no bytes: Python 3 spells them as a call that encodes text."""
    if not isinstance(function, Name):
        return None
    if function == Name("_codecs", "encode") and len(args) == 2 and args[1] in _LATIN:
        return args[0].encode("latin-1") if isinstance(args[0], str) else None
    empty = function.name == "bytes" and function.module in {"builtins", "__builtin__"}
    return b"" if empty and args == () else None


_LATIN = ("latin1", "latin-1")
