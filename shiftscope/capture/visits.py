"""One pass of a batch through a model, stopping at each layer in order of execution."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.capture.batches import as_batch
from shiftscope.capture.preserve import preserved_rng
from shiftscope.errors import DataError, MeasureError, ShiftscopeError

__all__ = ["ForwardHook", "Visit", "on_forward", "untouched", "walk"]

ForwardHook = Callable[[Any, tuple[Any, ...], Any], Any]
"""Called with module, arguments and output after each call of a layer."""

Visit = Callable[[str, nn.Module, Tensor, Tensor], bool]
"""Called with path, module, input and output; true if the layer was changed and must run again."""


def walk(
    model: nn.Module, batch: Any, layers: Iterable[tuple[str, nn.Module]], visit: Visit
) -> set[str]:
    """Run a batch through the model and let ``visit`` change each layer before the next one runs.

    A layer that was changed runs again at once, so that the layers behind it see what the changed
    model computes: one pass treats the whole model layer by layer. Layers called more than once
    are visited at their first call. Random state, buffers, modes and gradients stay as they were.

    Args:
        model: The model, in the mode it is to be seen in.
        batch: Inputs ``x``, ``(x, y)`` of which ``y`` is left aside, or a mapping of keywords.
        layers: Paths and modules to stop at.
        visit: What to do there.

    Returns:
        The paths that were reached.

    Raises:
        DataError: The batch is empty, or no batch at all.
        MeasureError: The model raised on it.
    """
    inputs, reached = as_batch(batch, with_target=False, model=model), set[str]()
    if any(x.numel() == 0 for x in inputs.tensors):
        raise DataError(f"the batch is empty ({inputs.shapes})", "Give at least one sample.")
    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        for path, module in layers:
            hook = _Stop(path, visit, reached)
            handle = module.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        try:
            model(*inputs.args, **inputs.kwargs)
        except ShiftscopeError:
            raise
        except Exception as error:
            raise MeasureError(
                f"the model raised {type(error).__name__} on the batch ({inputs.shapes}): "
                f"{(str(error).splitlines() or [''])[0]}",
                "Give inputs of the shape, dtype and device that the model takes.",
            ) from error
    return reached


def on_forward(module: nn.Module, hook: ForwardHook) -> None:
    """Call ``hook`` after every call of a layer, for as long as the layer keeps it."""
    module.register_forward_hook(hook)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Compute without gradients and leave random state and buffers of the model as they were."""
    fast = torch.backends.mha.get_fastpath_enabled()
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    saved = [{k: b.clone() for k, b in own.items() if b is not None} for _, own in buffers]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(preserved_rng())
        if "torch._dynamo" in sys.modules:  # else nothing can be compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)  # its kernels call no layer
        try:
            yield
        finally:
            for (module, own), values in zip(buffers, saved, strict=True):
                _restore(module, own, values)


def _restore(module: nn.Module, own: dict[str, Tensor | None], values: dict[str, Tensor]) -> None:
    for name, buffer in own.items():
        if name in module._buffers:
            module._buffers[name] = buffer
            if buffer is not None and not torch.equal(buffer, values[name]):
                buffer.copy_(values[name])


class _Stop:
    """The forward hook of one layer."""

    def __init__(self, path: str, visit: Visit, reached: set[str]) -> None:
        self.path, self.visit, self.reached = path, visit, reached

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        x = args[0] if args else kwargs.get("input")
        if self.path in self.reached or not isinstance(x, Tensor) or not isinstance(output, Tensor):
            return None
        if x.numel() == 0:  # an expert that no token was sent to
            return None
        self.reached.add(self.path)
        if self.visit(self.path, module, x, output):
            return module.forward(*args, **kwargs)
        return None
