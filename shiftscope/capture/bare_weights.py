"""What the weights of a state dict tell where no data were run."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.weights import weight_facts
from shiftscope.record import SiteInfo, SiteRecord
from shiftscope.snapshot import Snapshot

__all__ = ["weights_only"]

_WEIGHT = re.compile(r"(?:(\w+)_)?weight|weight_((?:ih|hh|hr)_l\d+(?:_reverse)?)")
"""``weight``, one of several (``in_proj_weight``), or one of a recurrent layer."""


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
    seen = 0
    for key, matrix in matrices.items():
        found = _record(key, matrix, state, len(records))
        if isinstance(found, str):
            gaps.append((key, found))
        else:
            records[found.info.site] = found
            seen += matrix.numel()
    coverage = {"parameters": {"seen": seen, "total": sum(t.numel() for t in matrices.values())}}
    return Snapshot(records, tuple(gaps), dict(manifest or {}) | {"weights_only": True}, coverage)


def _record(key: str, matrix: Tensor, state: Mapping[str, Tensor], order: int) -> SiteRecord | str:
    """What a matrix tells; or why it tells nothing."""
    path, _, name = key.rpartition(".")
    called = _WEIGHT.fullmatch(name)
    if called is None:
        return "its name does not say that it is a weight: give data to have its layer measured"
    label = called[1] or called[2]
    op = _bare_op(matrix, state.get(key.removesuffix(name) + name.replace("weight", "bias")))
    facts = weight_facts(op, None, 0)
    if facts is None:
        return "its weights cannot be read"
    site = f"{path}:{label}" if label else path or f":{op.op}"
    neurons = len(facts.norm2)
    info = SiteInfo(
        site, "linear", op.op, path, neurons, matrix.numel() // max(1, neurons), order=order
    )
    return SiteRecord(info, weights=facts, notes=("weights only: no data were run",))


def _bare_op(weight: Tensor, bias: Tensor | None) -> LinearOp:
    name = "linear" if weight.dim() == 2 else f"conv{min(weight.dim() - 2, 3)}d"
    fits = bias is not None and bias.shape == weight.shape[:1]
    return LinearOp(
        name, weight[:0], weight, bias if fits else None, -1, -1, lambda w: w.flatten(1)
    )
