"""Reading what others wrote: checkpoints, models, data sets and losses named on a command line.

Everything here treats a file as data. A checkpoint never runs code (``trust_pickle=True`` is the
one opt-in), declared sizes are compared with the file before memory is spent, and every refusal is
a :class:`~shiftscope.errors.ShiftscopeError` with a reason and a remedy.

* :func:`load_checkpoint` reads weights: every torch format, safetensors, sharded folders.
* :func:`load_model` builds the module a SPEC names and fits the weights into it, strictly.
* :func:`load_data` reads a data SPEC into re-iterable batches in a fixed order.
* :func:`input_statistics` describes what such batches hold.
* :func:`load_loss` turns a loss SPEC into a callable that checks its targets.
"""

from __future__ import annotations

from shiftscope.io.checkpoints import Checkpoint, load_checkpoint
from shiftscope.io.data import LoadedData, load_data
from shiftscope.io.inputs import input_statistics
from shiftscope.io.losses import load_loss
from shiftscope.io.models import LoadedModel, load_model

__all__ = [
    "Checkpoint",
    "LoadedData",
    "LoadedModel",
    "input_statistics",
    "load_checkpoint",
    "load_data",
    "load_loss",
    "load_model",
]
