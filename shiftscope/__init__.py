"""shiftscope: which layer trains badly, why, what to do, and what it would gain.

``import shiftscope as ss`` is cheap: every public name is resolved on first use, so that neither
torch nor a plotting library is imported before it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "report": "reporting",
    "Finding": "findings",
    "Thresholds": "findings",
    "diagnose": "findings",
    "verdict": "findings",
    "analyze": "capture.analyze",
    "BoundaryTracker": "capture.boundary_moves",
    "constrain": "fix.constrain",
    "DataError": "errors",
    "LoadError": "errors",
    "MeasureError": "errors",
    "ShiftscopeError": "errors",
    "UsageError": "errors",
    "Snapshot": "snapshot",
    "Comparison": "comparison",
    "Prescription": "fix.prescribe",
    "compare": "comparison",
    "draw": "",
    "load": "archive.loading",
    "predict_depth": "prediction",
    "prescribe": "fix.prescribe",
    "release": "fix.constrain",
    "rescale_": "fix.initialise",
    "Probe": "capture.watch",
    "Trace": "trace",
    "watch": "capture.watch",
    "experiments": "",
    "geometry": "",
    "nn": "",
    "tally": "",
    "theory": "",
    "trial": "capture.trial",
    "integrations": "",
    "verify": "theory.verification",
}
"""Public name -> the module that defines it ("" where the name is itself a submodule)."""

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'shiftscope' has no attribute {name!r}")
    if not home:
        return import_module(f"shiftscope.{name}")
    value = getattr(import_module(f"shiftscope.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
