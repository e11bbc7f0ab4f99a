"""Whether what ``ss.watch`` is given belongs together: optimizer, an earlier trace.

Refused at once is what is certain. Where only a recorded window can tell, it is told then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.archive import content_of
from shiftscope.capture.choice import matching, no_match, optimizer_of, some
from shiftscope.capture.coverage import nothing_measured
from shiftscope.capture.seen import Seen
from shiftscope.capture.sites import clean_path
from shiftscope.errors import MeasureError, UsageError
from shiftscope.given import expect
from shiftscope.record import SiteInfo, SiteRecord
from shiftscope.trace import Trace

__all__ = ["check_optimizer", "kept", "note_bypassed", "nothing_since", "resumed"]

_NOTHING_SEEN = (
    "no linear map and no activation was seen in the steps that were recorded",
    "watch a model that runs them in Python: scripted code shows none",
)
_NO_RUN = (
    "give probe.trace, or the file that probe.trace.save(...) wrote; on the first start of a run "
    "leave resume out"
)
_OTHER_RUN = "give the trace of this model's own run, or leave resume out"


def check_optimizer(model: nn.Module, optimizer: Any) -> None:
    """Refuse an optimizer that certainly trains another model.

    Where parameters may be something else than they seem (several processes, tensors of other
    classes, flat buffers, master copies of a model in reduced precision) nothing is certain.

    Args:
        model: The model.
        optimizer: The optimizer, a wrapper around one, or None.

    Raises:
        UsageError: It holds tensors, and none of them is or shares memory with one of the model's.
    """
    if optimizer is None or (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    ):
        return
    groups = getattr(optimizer_of(optimizer), "param_groups", None) or []
    held = [tensor for group in groups for tensor in group.get("params", ())]
    own: list[Tensor] = list(model.parameters()) or list(_attributes(model))
    if not held or not all(map(_is_plain, (*held, *own))):
        return
    if own and not any(p.requires_grad for p in own):
        return
    if any(p.is_floating_point() and p.element_size() < 4 for p in own):
        return
    if not {_memory(p) for p in own}.intersection(map(_memory, held)):
        what = "holds no parameter of" if own else "holds parameters, and there are none in"
        raise UsageError(
            f"the {type(optimizer).__name__} {what} the model that is watched",
            "give the optimizer made from its parameters, or none and call probe.step()",
        )


def _attributes(model: nn.Module) -> Iterator[Tensor]:
    """Trained tensors that modules hold as plain attributes, alone, in lists or dictionaries."""
    for module in model.modules():
        for value in vars(module).values():
            held = value.values() if isinstance(value, dict) else value
            items = held if isinstance(value, list | tuple | dict) else [value]
            yield from (t for t in items if isinstance(t, Tensor) and t.requires_grad)


def _is_plain(tensor: Any) -> bool:
    return type(tensor) in (Tensor, nn.Parameter)


def _memory(tensor: Tensor) -> int:
    """Its storage; the same one for all tensors without an address (meta), which tell nothing."""
    return tensor.untyped_storage().data_ptr()


def resumed(given: Any, model: nn.Module) -> Trace:
    """The trace that a run goes on with.

    Args:
        given: A trace, the path of a saved one, or None for a new one.
        model: The model that is watched.

    Raises:
        UsageError: It is no trace, or certainly one of another model.
        LoadError: The file cannot be read, or holds no trace.
    """
    if given is None:
        return Trace()
    if isinstance(given, str | os.PathLike):
        trace = Trace.parse(content_of(given, _NO_RUN), str(given), _NO_RUN)
    else:
        expect("resume", given, Trace, remedy=_NO_RUN)
        trace = given
    if len(trace):
        _check_modules([r.info for r in trace[-1].snapshot.records.values()], model)
    return trace


def _check_modules(infos: Sequence[SiteInfo], model: nn.Module) -> None:
    modules = {clean_path(name): module for name, module in model.named_modules()}
    if infos and not any(info.module in modules for info in infos):
        raise UsageError(*_strangers([info.site for info in infos], [*modules]))
    for info in infos:
        layer = modules.get(info.module)
        # A layer that runs itself runs all of its weight; others may take a part of it.
        if type(layer) is nn.Linear and info.kind == "linear" and info.site == info.module:
            _check_width(info.site, info.neurons, layer.out_features)


def kept(
    records: Mapping[str, SiteRecord],
    wanted: Sequence[str],
    phase: str,
    trace: Trace,
    start: int,
    unmeasured: Sequence[tuple[str, str]] = (),
) -> dict[str, SiteRecord]:
    """The records of a window that its trace keeps.

    Args:
        records: All records of the window.
        wanted: The patterns of ``sites=``.
        phase: The phase of the window.
        trace: Where it goes; remembers a window of which nothing is kept, and why.
        start: Number of the first step of this run.
        unmeasured: Where there are no records, what was run and could not be measured.

    Raises:
        UsageError: The earlier part of the trace, from before the start, is of another model.
    """
    if len(trace) and trace[-1].last < start:  # the first window after the earlier part
        same = [window for window in trace if window.phase == phase]
        earlier = (same or [*trace])[-1].snapshot.records
        if same and not earlier.keys() & records.keys():
            raise UsageError(*_strangers(earlier, records))
        for name in earlier.keys() & records.keys():
            _check_width(name, earlier[name].info.neurons, records[name].info.neurons)
    found = matching(records, wanted)
    trace.missed.pop(phase, None)
    if not found:
        trace.missed[phase] = no_match(wanted, records) if records else _why(phase, unmeasured)
    return found


def note_bypassed(trace: Trace, forwards: int, seen: Seen) -> None:
    """Tell in the trace why of a step that ends nothing was recorded, where that is known.

    Args:
        trace: The trace of the run.
        forwards: Forward passes that were recorded in it.
        seen: What was seen of the model.
    """
    bypassed, seen.bypassed = seen.bypassed, {}
    if bypassed and not forwards:
        trace.missed["train"] = _why("train", [*bypassed.items()])


def nothing_since(trace: Trace, phase: str, obstacles: Sequence[tuple[str, str]]) -> MeasureError:
    """The error of a snapshot that would be empty.

    Args:
        trace: The trace of the run.
        phase: The phase that was asked for.
        obstacles: What was run and could not be measured.
    """
    missed = trace.missed.get(phase)
    return nothing_measured(phase, obstacles) if missed is None else MeasureError(*missed)


def _why(phase: str, unmeasured: Sequence[tuple[str, str]]) -> tuple[str, str]:
    if not unmeasured:
        return _NOTHING_SEEN
    told = nothing_measured(phase, unmeasured, "")
    return told.reason, told.remedy


def _strangers(earlier: Iterable[str], here: Iterable[str]) -> tuple[str, str]:
    known, own = some(earlier), some(name for name in here if name)
    return (
        f"the trace to resume is of another model: its sites are {known}, here are {own}",
        _OTHER_RUN,
    )


def _check_width(site: str, earlier: int, here: int) -> None:
    if earlier != here:
        raise UsageError(
            f"the trace to resume is of another model: its site {site!r} has {earlier} neurons, "
            f"here it has {here}",
            _OTHER_RUN,
        )
