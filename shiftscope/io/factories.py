"""Calling the user's own code by name: ``package.module:factory`` and ``file.py:factory``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from shiftscope.errors import LoadError, UsageError

__all__ = ["call_factory", "find_file", "resolve"]

_OWN = "shiftscope_user_"
"""Modules made from the user's files are called so, to collide with nothing."""


def resolve(spec: str, folders: Sequence[Path]) -> tuple[Any, str]:
    """Import what a spec names.

    Args:
        spec: ``package.module:name`` or ``file.py:name``.
        folders: Where a relative file is looked for, in order.

    Returns:
        The object, and where it came from, for people.

    Raises:
        UsageError: The file, module or name does not exist.
        LoadError: The user's code raises on import.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UsageError(f"{spec!r} names no factory", "write FILE.py:NAME or PACKAGE.MODULE:NAME")
    if place.endswith(".py"):
        path = find_file(place, folders)
        module, shown = _import_file(path), str(path)
    else:
        module, shown = _import_module(place), place
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(module) if not n.startswith("_")]
            raise UsageError(
                f"{shown} has no {name!r}", f"it defines: {', '.join(public)[:300] or 'nothing'}"
            )
        found = getattr(found, part)
    return found, f"{name} of {shown}"


def find_file(name: str, folders: Sequence[Path]) -> Path:
    """The first existing file of that name.

    Args:
        name: Absolute or relative path.
        folders: Where a relative path is looked for, in order.

    Returns:
        The absolute path.

    Raises:
        UsageError: It is in none of the folders.
    """
    places = [folder / Path(name).expanduser() for folder in folders] or [Path(name)]
    for path in places:
        if path.is_file():
            return path.resolve()
    looked = ", ".join(str(folder) for folder in dict.fromkeys(map(Path.absolute, folders)))
    raise UsageError(f"{name} does not exist (looked in {looked})", "give its full path")


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(
                f"there is no module {name!r}",
                "install its package in this environment, or give a file: FILE.py:NAME",
            ) from None
        raise _own_fault(name, error) from error
    except Exception as error:
        raise _own_fault(name, error) from error


def _import_file(path: Path) -> ModuleType:
    """Run a file as a module of its own, with its neighbours importable meanwhile."""
    key = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    name = f"{_OWN}{key}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file", "give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up here
    try:
        with _neighbours(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise _own_fault(str(path), error) from error
    return module


@contextmanager
def _neighbours(folder: Path | None) -> Iterator[None]:
    """Let files of the folder import each other, as they would when run as a script."""
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _home(factory: object) -> Path | None:
    """The folder of a factory that came from a file of the user's."""
    name = getattr(factory, "__module__", None) or ""
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file).parent if name.startswith(_OWN) and file else None


def _own_fault(where: str, error: BaseException) -> LoadError:
    return LoadError(
        f"{where} raises {type(error).__name__}{_line(error)}: {_summary(error)}",
        "correct that code; it must run by itself before it can be analysed",
    )


def _line(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"


def _summary(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"


def call_factory(
    factory: Callable[..., Any], shown: str, values: Mapping[str, Any], offered: str
) -> tuple[Any, dict[str, Any]]:
    """Call a factory with those of the offered values whose names match its parameters.

    Args:
        factory: A function or class.
        shown: Its name, for messages.
        values: What may be passed by name.
        offered: What the values are, for messages ("hyper-parameters of the checkpoint").

    Returns:
        What it returns, and the values that were passed.

    Raises:
        UsageError: A required parameter has no value.
        LoadError: It raises.
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    passed = {p.name: values[p.name] for p in named if p.name in values}
    missing = [p.name for p in named if p.default is p.empty and p.name not in passed]
    missing += [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if missing:
        raise UsageError(
            f"{shown} needs {', '.join(missing)}, which are not among the {offered}",
            "give a function without required parameters that builds it",
        )
    try:
        with _neighbours(_home(factory)):
            return factory(**passed), passed
    except Exception as error:
        raise _own_fault(shown, error) from error
