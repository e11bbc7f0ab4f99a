"""Where people already look: sinks for windows of a watched run, and callbacks of trainers.

Every name is resolved on first use and only then is the other tool imported; a tool that is not
installed is named together with the extra that brings it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from shiftscope.errors import UsageError

_HOMES = {
    "Csv": ("tables", ""),
    "JsonLines": ("jsonl", ""),
    "LightningWatch": ("lightning", "lightning"),
    "LiveTable": ("live", ""),
    "Outlet": ("sink", ""),
    "Parquet": ("tables", "parquet"),
    "Sink": ("sink", ""),
    "TensorBoard": ("tensorboard", "tensorboard"),
    "TransformersWatch": ("transformers", "transformers"),
    "WeightsAndBiases": ("wandb", "wandb"),
    "feed": ("sink", ""),
}
"""Public name -> the module that defines it, and the extra that brings what it imports."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shiftscope.integrations' has no attribute {name!r}")
    module, extra = _HOMES[name]
    try:
        return getattr(import_module(f"shiftscope.integrations.{module}"), name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("shiftscope"):
            raise
        raise UsageError(
            f"{name} needs the package {error.name!r}, which is not installed",
            f'python -m pip install "shiftscope[{extra}]"',
        ) from error


def __dir__() -> list[str]:
    return list(__all__)
