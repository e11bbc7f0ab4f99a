"""Finding, right after an op ran, the autograd nodes that will carry its gradients.

A post hook on a node, ``node.register_hook(f(grad_inputs, grad_outputs))``, delivers what the
layer really received and its *own* share of the input gradient, at no extra cost and also where an
in-place op follows on a view, which silences tensor hooks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

__all__ = [
    *("Edge", "Hits", "core_node", "edge_of", "find_hits"),
    *("reaches", "rebased_nodes"),
]

_CORES = ("Addmm", "Mm", "Addmv", "Mv", "Convolution", "Linear", "MkldnnLinear", "SlowConv", "Thnn")
_PASSING = ("View", "UnsafeView", "Squeeze", "Unsqueeze", "Add", "ReshapeAlias", "ToCopy", "T")
_SEARCH_LIMIT = 60

Edge = tuple[Any, int]


@dataclass(frozen=True)
class Hits:
    """The places below an output where the gradient of one input arrives.

    Attributes:
        places: ``(node, index of the grad_input)``; the shares sum to the op's own gradient.
    """

    places: tuple[tuple[Any, int], ...]


def edge_of(x: Tensor) -> Edge | None:
    """Where gradients of x flow to; None when none do."""
    # Without gradients nothing flows; in inference mode torch finds no edge of a parameter.
    if not x.requires_grad or not torch.is_grad_enabled():
        return None
    edge = get_gradient_edge(x)
    return edge.node, edge.output_nr


def core_node(out: Tensor) -> Any:
    """The multiplication's own node below a linear op's output (at most five down), or None."""
    node = out.grad_fn
    for _ in range(5):
        if node is None:
            return None
        name = node.name()
        if name.startswith(_CORES):
            return node
        if not name.startswith(_PASSING) and "Copy" not in name:
            return None
        # The product is the first operand, also where a bias was added afterwards.
        node = node.next_functions[0][0] if node.next_functions else None
    return None


def find_hits(out: Tensor, edge: Edge) -> Hits:
    """Nodes between ``out`` and an input's edge whose grad_input is that input's gradient."""
    target, number = edge
    places: list[tuple[Any, int]] = []
    queue: deque[Any] = deque([out.grad_fn])
    seen: list[Any] = []
    while queue and len(seen) < _SEARCH_LIMIT:
        node = queue.popleft()
        if node is None or node is target or any(node is other for other in seen):
            continue
        seen.append(node)
        for index, (child, child_number) in enumerate(node.next_functions):
            if child is target and child_number == number:
                places.append((node, index))
            elif child is not None:
                queue.append(child)
    return Hits(tuple(places))


def reaches(out: Tensor, word: str) -> bool:
    """Whether a node whose name holds ``word`` lies anywhere below ``out``."""
    pending, seen = [out.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        if word in node.name():
            return True
        seen.add(node)
        pending += [child for child, _ in node.next_functions]
    return False


def rebased_nodes(out: Tensor) -> tuple[Any, Any] | None:
    """For an in-place op on a view: the nodes whose hooks see its output and input gradients.

    Torch rebuilds the history of such a tensor as ``AsStrided (or a view) <- CopySlices``; the
    op itself is inside CopySlices. An input that was filled in parts has such a history too, but
    what an op makes of it is no view.

    Returns:
        ``(node that receives the gradient of the output, CopySlices node)``, or None.
    """
    top = out.grad_fn
    node = top if out._is_view() else None
    for _ in range(3):
        if node is None:
            return None
        if "CopySlices" in node.name():
            return top, node
        node = node.next_functions[0][0] if node.next_functions else None
    return None
