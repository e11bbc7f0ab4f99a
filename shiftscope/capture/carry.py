"""How torch's operations carry the neurons of a layer from dimension to dimension.

One table for both ways of looking: backwards along the nodes of the autograd graph, and forwards
along the functions that are called where there is no graph. Both give an operation by its plain
name (``PermuteBackward0`` and ``Tensor.permute`` are ``permute``), its shapes and its dimensions.
What becomes of the marks of its operand is a rule (:mod:`shiftscope.capture.carry_rules`).
"""

from __future__ import annotations

import re
from functools import lru_cache

from shiftscope.capture.carry_rules import RULES, kept
from shiftscope.capture.marks import Marks, Step, none_of, one_of

__all__ = ["carry", "keeps", "source"]

_LAST = (
    *("addmm", "addmv", "mv", "linear", "mkldnnlinear", "embedding", "bilinear", "trilinear"),
    *("convtbc", "scaleddotproduct", "multiheadattention", "lstm", "gru", "rnn", "cudnnrnn"),
    *("mkldnnrnn", "miopenrnn", "thnnfused"),
)
_SECOND = ("batchnorm", "groupnorm", "instancenorm")
_CONVOLUTIONS = re.compile(r"conv(?:transpose)?(\d)d")


@lru_cache(maxsize=4096)
def source(name: str, dims: int, normalized: int = 0) -> Marks | None:
    """The marks of the output of a layer; None for an operation that is none.

    Args:
        name: The plain name of the operation.
        dims: Number of dimensions of its output.
        normalized: Number of dimensions that a layer normalisation works on.
    """
    last = dims - 1
    if last < 0:
        return None
    if name.startswith(_LAST):
        return one_of(dims, last)
    if "layernorm" in name or "rmsnorm" in name:
        return one_of(dims, last) if normalized == 1 else None
    if any(word in name for word in _SECOND):
        return one_of(dims, min(1, last))
    called = _CONVOLUTIONS.fullmatch(name)
    if called:
        return one_of(dims, max(0, last - int(called.group(1))))
    if "convolution" in name or name.startswith(("slowconv", "thnnconv", "convdepth")):
        return one_of(dims, min(1, last))
    return None


@lru_cache(maxsize=4096)
def keeps(name: str) -> bool:
    """Whether an operation leaves dimensions where they are, as far as is known."""
    return name not in RULES and source(name, 4, 1) is None


def carry(step: Step, marks: Marks) -> Marks:
    """The marks of an operation's output, given those of an operand.

    Args:
        step: The operation.
        marks: The marks of the operand.

    Returns:
        One mark for each dimension; no :data:`NEURONS` among them where they got lost.
    """
    if not any(marks) or len(marks) != len(step.before):
        return none_of(step.after)
    made = RULES.get(step.name, kept)(step, marks)
    return made if made is not None and len(made) == len(step.after) else none_of(step.after)
