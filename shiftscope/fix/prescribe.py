"""``ss.prescribe``: what to do about the findings, and what it would do, before it is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.capture.analyze import analyze
from shiftscope.capture.batches import as_batch
from shiftscope.capture.copies import twin
from shiftscope.capture.sites import unwrapped
from shiftscope.capture.visits import untouched
from shiftscope.errors import DataError, MeasureError, UsageError
from shiftscope.findings import Finding, diagnose
from shiftscope.findings.reading import Reading
from shiftscope.fix.architecture import architecture_advice
from shiftscope.fix.candidates import FIXES, Candidate, candidate, candidates_for
from shiftscope.fix.cautions import assumptions, warnings
from shiftscope.fix.choose import Sites
from shiftscope.fix.constrain import release
from shiftscope.fix.effects import gradient_effect, score, site_effects
from shiftscope.fix.gram import gram_condition
from shiftscope.fix.prescription import GradientEffect, Prescription
from shiftscope.fix.watchers import on_a_copy
from shiftscope.given import each, expect
from shiftscope.snapshot import Snapshot

__all__ = ["Prescription", "calibration", "output_change", "predict", "prescribe"]

_ROWS = 128


def prescribe(
    model: nn.Module,
    data: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    snapshot: Snapshot | None = None,
    methods: Sequence[str | Candidate] | None = None,
    sites: Sites = "*",
    batches: int | None = None,
    dtype: torch.dtype | None = None,
    gram: bool = False,
) -> list[Prescription]:
    """List the fixes for what is wrong with a network, with the effect each would have.

    Nothing of the model is changed. For each fix the shift a layer would have on its measured
    inputs is computed from its mean input and candidate weights; the effect of all layers together
    is seen on a copy; the gradient is predicted from weight norms and slopes (Kutsuna 2019,
    Propositions 5 and 6) and, with a loss, compared with the copy's. Where theory and copy differ
    by more than :data:`~shiftscope.fix.prescription.AGREEMENT` the prescription says why.

    Args:
        model: The model, in the mode it will train in.
        data: Batches as of :func:`shiftscope.analyze`; a one-shot iterator is read once and kept.
        loss_fn: ``loss_fn(output, y) -> scalar``; None predicts gradients by theory alone.
        snapshot: What :func:`shiftscope.analyze` measured on the model; None measures it.
        methods: Fixes to predict, by name or made by
            :func:`shiftscope.fix.candidates.candidate`; names of constraints are tried without
            rescaling and with it. None takes those that fit the findings.
        sites: Which layers may change, as of :func:`shiftscope.fix.constrain.constrain`.
        batches: Number of batches to use; None for all.
        dtype: Precision to measure in, as of :func:`shiftscope.analyze`.
        gram: Also compute the condition of the Gram matrix of gradients of the last hidden layer
            before and after (plain chains of fully connected layers only).

    Returns:
        Prescriptions, best score first; changes of the architecture, which are advice, last. Empty
        when nothing was found and no methods are given.

    Raises:
        UsageError: An unknown method, or an argument of another kind.
        DataError: No batch.
        MeasureError: The model cannot be measured.

    Example:
        >>> import torch, shiftscope as ss
        >>> _ = torch.manual_seed(0)
        >>> layers = [m for _ in range(4) for m in (torch.nn.Linear(32, 32), torch.nn.Sigmoid())]
        >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(32, 3))
        >>> best = ss.prescribe(model, [torch.rand(64, 32)], methods=["lcw"])[0]
        >>> print(best.code)
        ss.constrain(model, "lcw")
        ss.rescale_(model, batch)
    """
    if snapshot is not None:
        expect("snapshot", snapshot, Snapshot)
    model = unwrapped(model)
    batches_read = _kept(data, batches)
    before = snapshot or analyze(model, batches_read, loss_fn, dtype=dtype)
    findings = diagnose(before)
    found: list[Prescription] = []
    for item, causes in _wanted(methods, findings, sites).items():
        options = {"snapshot": before, "dtype": dtype, "gram": gram}
        found.append(_attempt(model, batches_read, loss_fn, item, causes, **options))
    found.sort(key=lambda p: p.score[1] if math.isfinite(p.score[1]) else math.inf)
    return found + (architecture_advice(before, findings) if methods is None else [])


def predict(
    model: nn.Module,
    data: Iterable[Any],
    fix: Candidate,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    snapshot: Snapshot | None = None,
    batch: Any = None,
    causes: tuple[str, ...] = (),
    dtype: torch.dtype | None = None,
    gram: bool = False,
) -> Prescription:
    """Predict the effect of one fix; the model stays as it is.

    Args:
        model: The model.
        data: Batches that can be iterated again.
        fix: The fix.
        loss_fn: As of :func:`prescribe`.
        snapshot: What was measured on the model with these data; None measures it.
        batch: What means and deviations are measured on; None takes the first batch.
        causes: Findings it is meant for.
        dtype: Precision to measure in.
        gram: As of :func:`prescribe`.

    Returns:
        The prescription.

    Raises:
        UsageError: The fix has no layer to work on.
        MeasureError: The fixed model cannot be measured.
    """
    before = snapshot or analyze(model, data, loss_fn, dtype=dtype)
    batch = calibration(data, model) if batch is None else batch
    trial = _copied(model)
    with on_a_copy():
        changes = fix.apply(trial, batch)
        release(trial)  # plain weights again, named as before
    after = analyze(trial, data, loss_fn, rows=_ROWS, dtype=dtype)
    treated = tuple(c.site for c in changes if c.action in ("constrain", "change"))
    effects = site_effects(model, before, after, fix, treated)
    gradient = gradient_effect(before, after, fix)
    change = output_change(model, trial, batch)
    told = assumptions(before, after, fix, gradient)
    conditions = None
    if gram:
        both = gram_condition(model, before), gram_condition(trial, after, fix.method)
        conditions = (both[0][0], both[1][0])
        told += tuple(f"No condition of the Gram matrix: {why}." for _, why in both[:1] if why)
        told += tuple(f"None with the fix: {why}." for _, why in both[1:] if why)
    return Prescription(
        fix=fix,
        causes=causes,
        sites=treated,
        effects=effects,
        gradient=gradient,
        score=score(effects, gradient),
        output_change=change,
        gram_condition=conditions,
        assumptions=told,
        warnings=warnings(model, before, fix, treated, effects, gradient, change),
        skipped=tuple((c.site, c.reason) for c in changes if c.action == "skip"),
    )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return twin(model)
    except (RuntimeError, TypeError) as error:
        raise MeasureError(
            f"the model cannot be copied: {str(error).splitlines()[0]}",
            "drop tensors that are part of a graph from its attributes, then try again",
        ) from error


def _attempt(
    model: nn.Module,
    data: Iterable[Any],
    loss_fn: Any,
    fix: Candidate,
    causes: tuple[str, ...],
    **options: Any,
) -> Prescription:
    """A prescription, or one that says why the fix cannot be had."""
    try:
        return predict(model, data, fix, loss_fn, causes=causes, **options)
    except (UsageError, MeasureError) as error:
        layers = len(Reading(options["snapshot"]).hidden)
        nothing = GradientEffect(layers, math.nan, math.nan, math.nan)
        told = f"It cannot be applied: {error.reason}"
        return Prescription(fix, causes, (), (), nothing, warnings=(told,))


def _wanted(
    methods: Sequence[str | Candidate] | None, findings: Sequence[Finding], sites: Sites
) -> dict[Candidate, tuple[str, ...]]:
    if methods is None:
        grave = [f.cause for f in findings if f.severity != "info"]
        return candidates_for(grave, sites)
    wanted: dict[Candidate, tuple[str, ...]] = {}
    known = f"give names such as {', '.join(FIXES[:3])}, or what candidate(...) gave"
    for method in each("methods", methods, str, Candidate, remedy=known):
        for item in [method] if isinstance(method, Candidate) else _variants(method, sites):
            wanted[item] = ()
    return wanted


def _variants(method: str, sites: Sites) -> Iterator[Candidate]:
    yield candidate(method, sites=sites)
    if method not in ("rescale", "standardize", "spectral_norm"):
        yield candidate(method, rescale=True, sites=sites)


def _kept(data: Iterable[Any], batches: int | None) -> Iterable[Any]:
    """Data that can be read again for every candidate."""
    if batches is None and not isinstance(data, Iterator):
        return data
    kept = list(islice(data, batches))
    if not kept:
        raise DataError("the data gave no batch", "give an iterable with at least one batch")
    return kept


def calibration(data: Iterable[Any], model: nn.Module) -> Any:
    """Take the first batch, in the form it has, to the device and precision of the model.

    Args:
        data: Batches.
        model: The model.

    Returns:
        The batch that means and deviations are measured on.
    """
    batch = next(iter(data))
    tensors = [*model.parameters(), *model.buffers(), torch.zeros(())]
    dtype = next(tensor.dtype for tensor in tensors if tensor.is_floating_point())
    moved = as_batch(batch, with_target=True).to(tensors[0].device, dtype)
    if moved.kwargs:
        return moved.kwargs
    return (*moved.args, moved.target) if moved.paired else moved.args[0]


def output_change(model: nn.Module, trial: nn.Module, batch: Any) -> float:
    """Measure how far the outputs of two networks are apart on a batch.

    Args:
        model: The network as it was.
        trial: The other one.
        batch: Inputs.

    Returns:
        ``‖y' − y‖/‖y‖``; NaN if the output is no tensor.
    """
    inputs = as_batch(batch, with_target=False, model=model)
    outputs = []
    for net in (model, trial):
        with untouched(net):
            outputs.append(net(*inputs.args, **inputs.kwargs))
    old, new = outputs
    if not isinstance(old, Tensor) or not isinstance(new, Tensor) or not old.numel():
        return math.nan
    size = float(old.double().norm())
    return float((new.double() - old.double()).norm()) / size if size else math.nan
