"""Every public name resolves, is documented, and is not hidden by a module of the same name."""

from __future__ import annotations

import inspect
import pkgutil
import re
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

import shiftscope

NAMES = sorted(set(shiftscope.__all__) - {"__version__"})
OPTIONAL = ("shiftscope.integrations.", "shiftscope.tally.triton_kernels")
"""Modules that need what is not installed everywhere."""


def submodules() -> list[str]:
    found = pkgutil.walk_packages(shiftscope.__path__, prefix="shiftscope.")
    return [module.name for module in found]


@pytest.fixture(scope="module", autouse=True)
def _everything_imported() -> None:
    """A submodule becomes an attribute of its package when imported, and may then hide a name."""
    for name in submodules():
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(OPTIONAL) or str(error.name).startswith("shiftscope"):
                raise


@pytest.mark.parametrize("name", NAMES)
def test_the_name_resolves_to_what_it_promises(name: str) -> None:
    value = getattr(shiftscope, name)
    is_module = isinstance(value, ModuleType)
    assert is_module == (shiftscope._HOMES[name] == ""), f"{name} is hidden by a submodule"
    assert inspect.getdoc(value), f"{name} has no docstring"


def documented_by(value: Any) -> Any:
    """Where the parameters are told: the class that defines the constructor."""
    if not inspect.isclass(value):
        return value
    return next(base for base in value.__mro__ if "__init__" in vars(base))


def parameters(value: Any) -> set[str]:
    called = value.__init__ if inspect.isclass(value) else value
    given = inspect.signature(called).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in given if p.kind not in kinds} - {"self"}


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_documented(name: str) -> None:
    value = getattr(shiftscope, name)
    if inspect.isfunction(value) or inspect.isclass(value):
        doc = inspect.getdoc(documented_by(value)) or ""
        told = set(re.findall(r"^\s*\*{0,2}(\w+)(?: \([^)]*\))?:\s", doc, flags=re.MULTILINE))
        assert parameters(value) - told == set()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = shiftscope.nonsense


def test_dir_lists_the_public_names() -> None:
    assert dir(shiftscope) == sorted(shiftscope.__all__)


@pytest.mark.parametrize("module", submodules())
def test_all_of_a_module_exists(module: str) -> None:
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    for name in getattr(loaded, "__all__", []):
        if f"{module}." == OPTIONAL and loaded._HOMES[name][1]:
            continue  # what needs another tool is tested where that tool is
        assert hasattr(loaded, name), f"{module}.__all__ names {name}"
