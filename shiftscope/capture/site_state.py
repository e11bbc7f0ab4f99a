"""What is known of one site, and of its weight, while a window is recorded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from shiftscope.capture.events import Counters
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.mean_inputs import MeanInput
from shiftscope.capture.neuron_dims import Lies
from shiftscope.capture.weights import OpenFacts
from shiftscope.record import SiteInfo, Stream

__all__ = ["EmptyCalls", "SiteState", "keep_weight", "note_changes"]


class EmptyCalls(Counters):
    """Calls of one site whose tensors had no rows.

    Attributes:
        carriers: Paths of the modules whose weights it uses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.carriers: set[str] = set()


@dataclass(eq=False)
class SiteState(Counters):
    """The growing numbers of one site."""

    info: SiteInfo
    streams: dict[str, Stream] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    mean_input: MeanInput | None = None
    weight: LinearOp | None = None
    facts: OpenFacts | None = None
    version: int = -1
    settled: bool = False
    notes: dict[str, None] = field(default_factory=dict)
    lost_since: dict[str, int] = field(default_factory=dict)
    lies: Lies | None = None
    carriers: set[str] = field(default_factory=set)
    met: bool = False

    def place(self, lies: Lies) -> None:
        """Keep where the neurons of an activation lie, and every doubt about it."""
        if self.lies is None or lies.doubt:
            self.lies = lies

    def restart(self) -> None:
        """Forget the numbers of a window; what is known of the op stays."""
        self.met = self.met or self.calls > 0
        self.streams, self.seen, self.notes, self.mean_input = {}, {}, {}, None
        self.lost_since = {}
        self.facts, self.version, self.settled = None, -1, False
        self.calls = self.samples = self.hooked = self.arrived = 0
        self.repeated = self.shares_due = self.shares = 0
        self.forward = -1


def keep_weight(state: SiteState, op: LinearOp) -> None:
    """Remember the effective weight of the last call, for the facts of the window.

    Not the parameter itself, which may come to hold other numbers by ``.data``.
    """
    before = state.weight
    if (
        before is not None
        and before.weight is not op.weight
        and before.weight.shape != op.weight.shape
    ):
        state.notes["weights of several shapes; facts are of the last one"] = None
    state.weight = replace(op, x=torch.empty(0), x2=None, weight=op.weight.detach())
    state.version = _version(op.weight)


def note_changes(state: SiteState) -> None:
    """Tell of a weight that was written to after its call, where its facts are read now."""
    op = state.weight
    if op is not None and state.version not in (-1, _version(op.weight)):
        state.notes[
            "the weights were changed between their call and the end of the step; "
            "facts are of the changed ones"
        ] = None


def _version(weight: Tensor) -> int:
    return -1 if weight.is_inference() else weight._version
