"""Recording at every step, cheaply: means and variances of all four streams, and mean inputs.

Here ops become readings. How tensors are read is the business of the readers
(:mod:`shiftscope.capture.readers`), what becomes of the readings that of the books
(:mod:`shiftscope.capture.ledger` for a step, :mod:`shiftscope.capture.window_ledger` for a window).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from shiftscope.capture.activation_ops import ActivationOp
from shiftscope.capture.linear_ops import LinearOp
from shiftscope.capture.mean_inputs import MeanInput
from shiftscope.capture.readers import Found
from shiftscope.capture.readings import kind_of
from shiftscope.capture.sampling import PICTURE_ROWS
from shiftscope.capture.site_state import SiteState, keep_weight
from shiftscope.capture.weights import OpenFacts
from shiftscope.capture.window_ledger import WindowLedger
from shiftscope.record import SiteInfo

__all__ = ["LeanRecorder"]

_CALLS = ("called", "called, hooked")


class LeanRecorder(WindowLedger):
    """Records moments at every step, and row samples at the steps that ask for details.

    Args:
        settings: What to record.
        scaler: The GradScaler in use, so that gradients can be divided by its scale.
    """

    def linear(
        self, site: str, module: str, op: LinearOp, out: Tensor, where: tuple[int, int]
    ) -> SiteState:
        """Record a linear op that has just run (see :meth:`Recorder.linear`)."""
        outputs = out if op.arrange_z is None else op.arrange_z(out.detach())
        inputs = op.x if op.arrange_x is None else op.arrange_x(op.x.detach())
        z_dim = op.z_dim if op.arrange_z is None else -1
        x_dim = op.x_dim if op.arrange_x is None else -1
        width = outputs.shape[z_dim]
        state = self._state(SiteInfo(site, "linear", op.op, module, width, op.fan_in(width)))
        self.linear_streams(state, op, inputs, outputs, (x_dim, z_dim))
        self.keep(state, op)
        self.called(state, where)
        return state

    def keep(self, state: SiteState, op: LinearOp) -> None:
        """Remember a weight; it is read when the step has ended, if it is its first."""
        keep_weight(state, op)
        if not state.settled:
            self.unsettled = True

    def linear_streams(
        self,
        state: SiteState,
        op: LinearOp,
        inputs: Tensor,
        outputs: Tensor,
        dims: tuple[int, int],
    ) -> None:
        """Read input and output of a linear op."""
        x_kind, z_kind = kind_of(inputs, dims[0]), kind_of(outputs, dims[1])
        if op.x2 is not None:
            products = MeanInput.of(op, inputs)
            a: Found | None = products.moments.moments if products.moments else None
            with self._lock:
                state.mean_input = products.merge(state.mean_input)
        else:
            a = self.look(self.slot(state, "a"), inputs, x_kind, dims[0])
        z_slot = self.slot(state, "z")
        z = self.look(z_slot, outputs, z_kind, dims[1])
        self.write(self.slot(state, "a"), a)
        self.write(z_slot, z)
        if op.patches is not None:
            self.image(state, op, inputs, a)
        if self.detail:
            self.linear_samples(state, op, (inputs, outputs), (x_kind, z_kind), (a, z), dims)

    def linear_samples(
        self,
        state: SiteState,
        op: LinearOp,
        tensors: tuple[Tensor, Tensor],
        kinds: tuple[int, int],
        readings: tuple[Any, Any],
        dims: tuple[int, int] = (-1, -1),
    ) -> None:
        """Keep rows of the output, and of inputs that are rows themselves."""
        z, a = self.slot(state, "z"), self.slot(state, "a")
        self.sample(z, tensors[1], kinds[1], dims[1], readings[1])
        if op.patches is None and op.x2 is None:
            self.sample(a, tensors[0], kinds[0], dims[0], readings[0], PICTURE_ROWS)

    def activation(
        self, site: str, module: str, op: ActivationOp, dim: int
    ) -> tuple[SiteState, Any]:
        """Read the input of an activation op that is about to run."""
        info = SiteInfo(
            *(site, "activation", op.op, module, op.x.shape[dim], 0),
            *(dict(op.params), op.elementwise),
        )
        state = self._state(info)
        return state, self.before(self.slot(state, "z"), op.x, kind_of(op.x, dim), dim)

    def before(self, slot: int, x: Tensor, kind: int, dim: int) -> Any:
        """Read, and at steps with details copy rows of, what the op may overwrite."""
        reading = self.look(slot, x, kind, dim)
        sample = self._sampler.draw(slot, x, kind, dim, reading) if self.detail else None
        return reading, sample

    def activated(
        self, state: SiteState, z: Any, out: Tensor, dim: int, where: tuple[int, int]
    ) -> None:
        """Record an activation op that has just run."""
        self.after((self.slot(state, "z"), self.slot(state, "a")), z, out, kind_of(out, dim), dim)
        self.called(state, where)

    def after(self, slots: tuple[int, int], z: Any, out: Tensor, kind: int, dim: int) -> None:
        """Keep the input that was read, and read the output."""
        z_slot, a_slot = slots
        self.write(z_slot, z[0])
        a = self.look(a_slot, out, kind, dim)
        self.write(a_slot, a)
        if z[1] is not None:
            self._sampler.put(z_slot, z[1])
            self.sample(a_slot, out, kind, dim, a)

    def called(self, state: SiteState, where: tuple[int, int], hooked: bool = False) -> None:
        """Count a call, at the end of the step; and that its gradients are waited for."""
        self._events.append((state, "called, hooked" if hooked else "called", where))

    def _order(self) -> int:
        # One that comes in a later step (a swapped layer, an expert) follows the one before it.
        if not self.epoch:
            return super()._order()
        called = (s for s, what, _ in reversed(self._events) if what in _CALLS)
        before = next((s for s in called if isinstance(s, SiteState)), None)
        return -1 if before is None else before.info.order

    def read_weight_now(self, state: SiteState, op: LinearOp) -> None:
        """Read a weight that may be gone when the window ends (a sharded one is freed)."""
        inputs = op.x if op.arrange_x is None else op.arrange_x(op.x.detach())
        mean_input = MeanInput.of(op, inputs)
        rows = max(1, inputs.numel() // max(1, inputs.shape[op.x_dim]))
        facts = OpenFacts.of(op, mean_input, rows)
        if facts is not None:
            state.facts = facts if state.facts is None else state.facts.merge(facts)
            state.weight = None

    def arrived(self, state: SiteState, due: bool, share: bool, again: bool) -> None:
        """A gradient came back to a call: for the first time, or once more."""
        what = "repeated"
        if not again:
            what = ("shared" if share else "due") if due else "arrived"
        self._events.append((state, what, None))

    def gradient(self, state: SiteState, name: str, grad: Tensor, dim: int) -> None:
        """Record one gradient stream; called from autograd's threads."""
        if grad.shape[dim] and not grad.is_sparse:
            self.take(self.slot(state, name), grad, kind_of(grad, dim), dim)
