"""What the weights of a state dict tell where no data were run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from shiftscope.capture.bare_layouts import Layouts, bias_of
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.weights import weight_facts
from shiftscope.record import SiteInfo, SiteRecord, WeightFacts
from shiftscope.snapshot import Snapshot

__all__ = ["weights_only"]

_WEIGHT = re.compile(r"(?:(\w+)_)?weight|weight_((?:ih|hh|hr)_l\d+(?:_reverse)?|ih|hh)")
"""``weight``, one of several (``in_proj_weight``), or one of a recurrent layer or cell."""
_PART = re.compile(r"weight_(?:g|v|orig|mask)|original\d*")
"""Parts of weights under normalisation, pruning or a parametrisation."""

_TABLE = re.compile(r"(\w*_)?emb(ed(ding)?s?)?(_(tokens|positions))?|wte|wpe", re.IGNORECASE)
"""Usual names of embeddings."""

_PACKED = "_packed_params"
_COMPLEX = "complex weights: means and variances of complex numbers are not defined here"
_INTEGERS = "its numbers are integers: a quantised layer, whose weights cannot be read"
_LOOK_UP = "a look-up table, by its name: no linear map is executed"
_IN_PARTS = "a part of a weight that is computed at each call: give data to have its layer measured"
_UNNAMED = "its name does not say that it is a weight: give data to have its layer measured"
_NOTE = "weights only: no data were run"
_TURNED = "its rows are those of the transposed matrix, as the biases tell"
_ONE_GROUP = "xi is that of a convolution without groups, of which a state dict does not tell"


def weights_only(
    state: Mapping[str, Tensor],
    manifest: Mapping[str, object] | None = None,
    left_out: Iterable[str] = (),
) -> Snapshot:
    """What weights alone can tell: norms, angles to 1, eta, xi, the LCW residual.

    Args:
        state: A state dict; matrices whose names say that they are weights become linear sites,
            named as in a run; all others are gaps. Which dimension holds the neurons is told by
            biases (:mod:`shiftscope.capture.bare_layouts`); it is the first where nothing tells.
        manifest: What to say of its origin.
        left_out: Names of entries that are no tensors; packed weights among them are gaps.

    Returns:
        A snapshot without streams; everything that needs data is NaN.
    """
    records: dict[str, SiteRecord] = {}
    gaps: list[tuple[str, str]] = []
    layouts = Layouts(state)
    matrices = {key: tensor for key, tensor in state.items() if _is_matrix(key, tensor)}
    tables = [key for key in matrices if _is_table(key, state)]
    for key in tables:  # no part of what could be seen, as in a run
        del matrices[key]
        gaps.append((key.rpartition(".")[0], _LOOK_UP))
    seen = 0
    for key, matrix in matrices.items():
        why = _obstacle(key, matrix)
        op = layouts.op(key, matrix, bias_of(key, state))
        facts = None if why else weight_facts(op, None, 0)
        if facts is None:
            gaps.append((key, why or "its weights cannot be read"))
            continue
        record = _record(key, op, facts, len(records))
        records[record.info.site] = record
        seen += matrix.numel()
    packed = dict.fromkeys(n.partition(f".{_PACKED}")[0] for n in left_out if f".{_PACKED}" in n)
    gaps += [(path, "packed weights of a quantised layer cannot be read") for path in packed]
    coverage = {"parameters": {"seen": seen, "total": sum(t.numel() for t in matrices.values())}}
    return Snapshot(records, tuple(gaps), dict(manifest or {}) | {"weights_only": True}, coverage)


def _is_matrix(key: str, tensor: Tensor) -> bool:
    """Whether a tensor may be a weight; integers are by their name only, others are indices."""
    real = tensor.is_floating_point() or tensor.is_complex()
    return tensor.dim() >= 2 and tensor.numel() > 0 and (real or "weight" in _name(key))


def _is_table(key: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a matrix is an embedding by its name: such have no bias."""
    path, _, name = key.rpartition(".")
    plain = name == "weight" and state[key].dim() == 2 and bias_of(key, state) is None
    return plain and _TABLE.fullmatch(_name(path)) is not None


def _obstacle(key: str, matrix: Tensor) -> str:
    """Why a matrix is not read; empty if it may be."""
    if _PART.fullmatch(_name(key)):
        return _IN_PARTS
    if matrix.is_complex():
        return _COMPLEX
    if not matrix.is_floating_point():
        return _INTEGERS
    return "" if _WEIGHT.fullmatch(_name(key)) else _UNNAMED


def _record(key: str, op: LinearOp, facts: WeightFacts, order: int) -> SiteRecord:
    """The site of a weight."""
    path, name = key.rpartition(".")[0], _name(key)
    called = _WEIGHT.fullmatch(name)
    label = (called[1] or called[2]) if called is not None else ""
    site = f"{path}:{label}" if label else path or f":{op.op}"
    neurons = len(facts.norm2)
    fan_in = op.fan_in(neurons)
    info = SiteInfo(site, "linear", op.op, path, neurons, fan_in, order=order)
    notes = [_NOTE]
    if op.op == "addmm" or op.op.startswith("conv_transpose"):
        notes.append(_TURNED)
    if op.weight.dim() > 2 and op.groups == 1:
        notes.append(_ONE_GROUP)
        if op.weight.shape[1] == 1:  # each channel by itself, but for images of one channel
            facts = replace(facts, xi=math.nan)
    return SiteRecord(info, weights=facts, notes=tuple(notes))


def _name(key: str) -> str:
    return key.rpartition(".")[2]
