"""What the weights of a state dict tell where no data were run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.weights import weight_facts
from shiftscope.record import SiteInfo, SiteRecord
from shiftscope.snapshot import Snapshot

__all__ = ["weights_only"]

_WEIGHT = re.compile(r"(?:(\w+)_)?weight|weight_((?:ih|hh|hr)_l\d+(?:_reverse)?)")
"""``weight``, one of several (``in_proj_weight``), or one of a recurrent layer."""
_NOTE = "weights only: no data were run"
_TURNED = "its rows are those of the transposed matrix, as the biases tell"


def weights_only(
    state: Mapping[str, Tensor], manifest: Mapping[str, object] | None = None
) -> Snapshot:
    """What weights alone can tell: norms, angles to 1, eta, xi, the LCW residual.

    Args:
        state: A state dict; matrices whose names say that they are weights become linear sites,
            named as in a run; all others are gaps.
        manifest: What to say of its origin.

    Returns:
        A snapshot without streams; everything that needs data is NaN.
    """
    records: dict[str, SiteRecord] = {}
    gaps: list[tuple[str, str]] = []
    matrices = {k: t for k, t in state.items() if t.dim() >= 2 and t.is_floating_point()}
    turned = _turned(matrices, state)
    seen = 0
    for key, matrix in matrices.items():
        found = _record(key, matrix, _bias_of(key, state), key in turned)
        if isinstance(found, str):
            gaps.append((key, found))
        else:
            records[found.info.site] = replace(found, info=replace(found.info, order=len(records)))
            seen += matrix.numel()
    coverage = {"parameters": {"seen": seen, "total": sum(t.numel() for t in matrices.values())}}
    return Snapshot(records, tuple(gaps), dict(manifest or {}) | {"weights_only": True}, coverage)


def _record(key: str, matrix: Tensor, bias: Tensor | None, turned: bool) -> SiteRecord | str:
    """What a matrix tells; or why it tells nothing."""
    path, _, name = key.rpartition(".")
    called = _WEIGHT.fullmatch(name)
    if called is None:
        return "its name does not say that it is a weight: give data to have its layer measured"
    op = _turned_op(matrix, bias) if turned else _bare_op(matrix, bias)
    facts = weight_facts(op, None, 0)
    if facts is None:
        return "its weights cannot be read"
    label = called[1] or called[2]
    site = f"{path}:{label}" if label else path or f":{op.op}"
    neurons = len(facts.norm2)
    info = SiteInfo(site, "linear", op.op, path, neurons, matrix.numel() // max(1, neurons))
    return SiteRecord(info, weights=facts, notes=(_NOTE, _TURNED) if turned else (_NOTE,))


def _bias_of(key: str, state: Mapping[str, Tensor]) -> Tensor | None:
    path, dot, name = key.rpartition(".")
    bias = state.get(f"{path}{dot}{name.replace('weight', 'bias')}")
    return bias if bias is not None and bias.dim() == 1 else None


def _turned(matrices: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> set[str]:
    """The weights whose first dimension is that of the inputs, as far as their biases tell.

    So lie transposed convolutions, and the linear maps of some libraries (GPT-2 of transformers):
    a square one is taken to lie as other layers of its name do.
    """
    turned = {
        key
        for key, matrix in matrices.items()
        if (bias := _bias_of(key, state)) is not None and _groups(matrix, len(bias))
    }
    names = {key.split(".")[-2:][0] for key in turned if matrices[key].dim() == 2}
    square = {
        key
        for key, matrix in matrices.items()
        if matrix.dim() == 2 and matrix.shape[0] == matrix.shape[1]
    }
    return turned | {key for key in square if key.split(".")[-2:][0] in names}


def _groups(matrix: Tensor, outputs: int) -> int:
    """Groups of a weight ``[inputs, outputs / groups, ...]``; 0 where it does not lie so."""
    inputs, mine = matrix.shape[:2]
    groups = outputs // max(1, mine)
    alone = groups == 1 or matrix.dim() > 2
    fits = outputs == groups * mine and groups and inputs % groups == 0 and alone
    return groups if fits and outputs != inputs else 0


def _bare_op(weight: Tensor, bias: Tensor | None) -> LinearOp:
    name = "linear" if weight.dim() == 2 else f"conv{min(weight.dim() - 2, 3)}d"
    fits = bias is not None and bias.shape == weight.shape[:1]
    return _op(name, weight, bias if fits else None, lambda w: w.flatten(1))


def _turned_op(weight: Tensor, bias: Tensor | None) -> LinearOp:
    name = "addmm" if weight.dim() == 2 else f"conv_transpose{min(weight.dim() - 2, 3)}d"
    groups = 1 if bias is None else max(1, len(bias) // weight.shape[1])

    def rows(w: Tensor) -> Tensor:
        parts = w.reshape(groups, -1, *w.shape[1:]).transpose(1, 2)
        return parts.reshape(groups * w.shape[1], -1)

    return _op(name, weight, bias, rows, groups)


def _op(
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    rows: Callable[[Tensor], Tensor],
    groups: int = 1,
) -> LinearOp:
    return LinearOp(name, weight[:0], weight, bias, -1, -1, rows, groups=groups)
