"""What was seen of a model, what was not, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from shiftscope.absences import NO_GRADIENTS, NOT_CALLED, NOT_NOW, is_no_rows, no_rows
from shiftscope.capture.preserve import preserved
from shiftscope.capture.probe import Attachment
from shiftscope.capture.recorder import Recorder
from shiftscope.capture.site_state import EmptyCalls, SiteState
from shiftscope.errors import MeasureError

__all__ = ["coverage", "forward_flops", "missing", "nothing_measured", "obstacles"]

_LOOKUPS = (nn.Embedding, nn.EmbeddingBag)


def missing(attachment: Attachment, recorder: Recorder) -> list[tuple[str, str]]:
    """Gaps: every weight-carrying module that was not measured, with the reason.

    Args:
        attachment: The attachment after its window.
        recorder: What recorded the window.

    Returns:
        ``(module path, reason)``, those found while running first; of calls without rows the name
        of the site.
    """
    called = recorder.with_rows
    empty = {site: c for site, c in recorder.empty_calls.items() if site not in called}
    measured = recorder.measured
    earlier = dict.fromkeys(recorder.known - measured, NOT_NOW)
    return _listed(attachment, measured, empty, earlier)


def obstacles(attachment: Attachment) -> list[tuple[str, str]]:
    """Gaps of what was run and could not be measured, in any phase."""
    measured = attachment.measured
    empty = {s: c for s, c in attachment.empty.items() if not measured or c.carriers - measured}
    found = _listed(attachment, measured, empty, {})
    return [(path, reason) for path, reason in found if reason != NOT_CALLED]


def _listed(
    attachment: Attachment,
    measured: set[str],
    empty: Mapping[str, EmptyCalls],
    earlier: Mapping[str, str],
) -> list[tuple[str, str]]:
    """Gaps by what was measured, what had no rows, and what was measured at other times."""
    gaps = [*attachment.gaps, *((site, no_rows(calls.calls)) for site, calls in empty.items())]
    known = {path for path, _ in gaps}
    known.update(*(calls.carriers - measured for calls in empty.values()))
    for module, path in attachment.names.paths.items():
        reason = _reason(attachment, measured, module, path)
        if path not in known and reason is not None:
            gaps.append((path, earlier.get(_owner(path), reason)))
    return gaps


def nothing_measured(
    phase: str, found: Sequence[tuple[str, str]], when: str = " since the last snapshot"
) -> MeasureError:
    """The error of a snapshot without records.

    Args:
        phase: The phase that was asked for.
        found: What was run and could not be measured.
        when: In which steps.
    """
    if found:
        remedy = "call eager modules on plain tensors; what no hook can see cannot be measured"
        if all(is_no_rows(reason) for _, reason in found):
            remedy = "nothing, if batches may be empty; steps with rows are measured"
        if any(reason.startswith("fused") for _, reason in found):
            remedy = "ss.analyze runs fused layers as their parts: measure a checkpoint of the run"
        return MeasureError(
            f"nothing could be measured in phase {phase!r}{when} ({_by_reason(found)})", remedy
        )
    return MeasureError(
        f"no step of phase {phase!r} was recorded since the last snapshot",
        "train on, or give every=1; validation is recorded inside probe.record()",
    )


def _by_reason(found: Sequence[tuple[str, str]]) -> str:
    """The first few places of each of the first few reasons."""
    places: dict[str, list[str]] = {}
    for path, reason in found:
        places.setdefault(reason, []).append(path or "the model")
    return _few([f"{_few(paths, ', ')}: {reason}" for reason, paths in places.items()], "; ")


def _few(items: Sequence[str], between: str) -> str:
    more = [f"and {len(items) - 4} more"] * (len(items) > 4)
    return between.join([*items[:4], *more])


def coverage(attachment: Attachment, recorder: Recorder, flops: float) -> dict[str, Any]:
    """Shares of parameters, operations and activations that were measured.

    Args:
        attachment: The attachment after its window.
        recorder: What recorded the window.
        flops: Operations of all forward passes (0 when they could not be counted).

    Returns:
        ``{"parameters" | "modules" | "flops" | "activations": {"seen": ..., "total": ...}}``;
        parameters are those with two or more dimensions, look-up tables left out; flops are those
        of all measured forward passes. In a run, all but flops count what was seen so far.
    """
    carriers = [(m, p) for m, p in attachment.names.paths.items() if weights_of(m)]
    linear = [(m, p) for m, p in carriers if not isinstance(m, _LOOKUPS)]
    seen = [(m, p) for m, p in linear if _owner(p) in recorder.known]
    states = recorder.states
    unseen = sum(w.numel() for m, _ in seen for w in _unseen(attachment, m).values())
    idle = [
        p
        for m, p in attachment.names.paths.items()
        if _is_activation(m) and p not in attachment.called
    ]
    met = [state for state in states.values() if state.calls or state.met]
    active = sum(1 for state in met if state.info.kind == "activation")
    done = sum(_flops(state) for state in states.values())
    return {
        "parameters": {"seen": _count(seen) - unseen, "total": _count(linear)},
        "modules": {"seen": len(seen), "total": len(linear)},
        "flops": {"seen": done, "total": max(flops, done) if flops else None},
        "activations": {"seen": active, "total": active + len(idle)},
    }


def forward_flops(model: nn.Module, run: Callable[[], Any]) -> float:
    """Floating point operations of one forward pass, by torch's own counter; 0 if it fails.

    Args:
        model: The model; left as it was.
        run: Runs the forward pass.
    """
    try:
        with preserved(model), FlopCounterMode(display=False) as counter:
            run()
        return float(counter.get_total_flops())
    except Exception:  # a counter that does not know an op must not stop the measurement
        return 0.0


def weights_of(module: nn.Module) -> list[Tensor]:
    """A module's own weights: floating or complex parameters of two or more dimensions."""
    return [weight for _, weight in _named_weights(module)]


def _named_weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (name, p)
        for name, p in module._parameters.items()
        if isinstance(p, Tensor)
        and not isinstance(p, nn.UninitializedParameter)
        and (p.is_floating_point() or p.is_complex())
        and p.dim() >= 2
    ]


def _reason(attachment: Attachment, measured: set[str], module: nn.Module, path: str) -> str | None:
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "a lazy module that was not called: its weights do not exist yet"
    if _is_quantised(module):
        return "a quantised layer: its integer weights carry no preactivation statistics"
    if not weights_of(module) and not _is_activation(module):
        return None
    if _owner(path) in measured:
        unseen = _unseen(attachment, module)
        told = _told({n: w for n, w in unseen.items() if id(w) not in attachment.idle})
        return told and attachment.refused.get(path, told)
    return _why_not_seen(attachment, module, path)


def _why_not_seen(attachment: Attachment, module: nn.Module, path: str) -> str | None:
    places = {path, _owner(path)}
    if not places & attachment.called and path not in attachment.refused:
        return attachment.passed.get(path, NOT_CALLED)
    if places & attachment.measured:
        return NO_GRADIENTS
    if isinstance(module, _LOOKUPS):
        return "a look-up table: no linear map is executed"
    if any(weight.is_complex() for weight in weights_of(module)):
        return "complex weights: means and variances of complex numbers are not defined here"
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module: no hook and no mode sees its inside"
    return attachment.refused.get(path) or _told(dict(_named_weights(module)))


def _unseen(attachment: Attachment, module: nn.Module) -> dict[str, Tensor]:
    """Weights of a measured module that no measured op used; none where all were computed from."""
    named = dict(_named_weights(module))
    unseen = {name: w for name, w in named.items() if id(w) not in attachment.parameters}
    return unseen if len(unseen) < len(named) else {}


def _told(weights: dict[str, Tensor]) -> str | None:
    if not weights:
        return None
    return (
        f"called, but no linear map with its {', '.join(weights)} was seen "
        "(added, or used by a fused or custom op)"
    )


def _owner(path: str) -> str:
    """The module a parametrisation belongs to."""
    return path.split(".parametrizations.")[0]


def _count(carriers: list[tuple[nn.Module, str]]) -> int:
    unique = {id(p): p.numel() for module, _ in carriers for p in weights_of(module)}
    return sum(unique.values())


def _is_activation(module: nn.Module) -> bool:
    home = type(module).__module__ == "torch.nn.modules.activation"
    return home and not isinstance(module, nn.MultiheadAttention)


def _is_quantised(module: nn.Module) -> bool:
    return ".quantized" in type(module).__module__ and hasattr(module, "_packed_params")


def _flops(state: SiteState) -> float:
    if state.info.kind != "linear":
        return 0.0
    transposed = "transpose" in state.info.op
    rows = state.seen.get("a" if transposed else "z", 0)
    return 2.0 * rows * state.info.neurons * state.info.fan_in
