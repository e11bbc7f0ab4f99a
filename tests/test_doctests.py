"""The examples in the docstrings are run."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

import shiftscope

MODULES = [m.name for m in pkgutil.walk_packages(shiftscope.__path__, prefix="shiftscope.")]


@pytest.mark.parametrize("name", ["shiftscope", *MODULES])
def test_examples(name: str) -> None:
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("shiftscope"):
            raise
        pytest.skip(f"needs {error.name}")
    assert doctest.testmod(module).failed == 0
