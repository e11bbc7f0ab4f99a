"""Put constraints on a model's weights, list them, and bake them back."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from shiftscope.errors import UsageError
from shiftscope.fix.attach import detach, method_of
from shiftscope.fix.attach_many import attach_all, attach_by_data
from shiftscope.fix.choose import Sites, choose, obstacle
from shiftscope.fix.watchers import refuse_wrapped, shapes_of, warn_of_nothing, warn_of_optimizers
from shiftscope.given import shown

__all__ = ["METHODS", "Change", "constrain", "is_constrained", "release"]

METHODS = ("lcw", "lcw-projection", "lcw-data", "cwn", "weight_norm", "spectral_norm", "gmp")
"""The names :func:`constrain` knows."""

_OPTIONS = {
    "channelwise": ("lcw", "lcw-projection"),
    "scale": ("cwn",),
    "batch": ("lcw-data",),
    "momentum": ("lcw-data",),
}


@dataclass(frozen=True)
class Change:
    """What happens, or would happen, to the weight of one layer.

    Args:
        site: Path of the layer; the empty string for the model itself.
        layer: Class of the layer.
        method: The constraint.
        action: ``constrain``, ``keep`` (it has this constraint already), ``skip`` or ``release``.
        reason: Why a layer is skipped; of one that is constrained, what is to be known (a frozen
            weight was projected; rounding changed the weights).
    """

    site: str
    layer: str
    method: str
    action: str
    reason: str = ""


def constrain(
    model: nn.Module,
    method: str = "lcw",
    sites: Sites = "*",
    *,
    dry_run: bool = False,
    channelwise: bool = False,
    scale: float | None = None,
    batch: Any = None,
    momentum: float | None = None,
) -> list[Change]:
    """Constrain the weights of a model's linear maps, now and after every optimiser step.

    The weights are first projected onto the constraint (``lcw…``, ``cwn``), normalised
    (``spectral_norm``) or only written in other coordinates (``weight_norm``, ``gmp``). Biases keep
    their values. Build the optimiser, and wrap the model in DistributedDataParallel, afterwards:
    most constraints replace the parameters. A stale optimiser is warned of.
    Constraining again with the same method changes nothing.

    ======================  ====================================================================
    ``lcw``                 rows sum to zero, by orthonormal coordinates ``w = Bv``
    ``lcw-projection``      rows sum to zero, ``w = u − mean(u)``; Adam sees the usual coordinates
    ``lcw-data``            rows orthogonal to the mean input measured on ``batch``
    ``cwn``                 zero-sum rows with a norm of their own
    ``weight_norm``         ``w = g v/‖v‖`` (torch's)
    ``spectral_norm``       ``W/σ_max(W)`` (torch's)
    ``gmp``                 ``w = r u(θ)``, ``b = r λ``: hyperspherical angles
    ======================  ====================================================================

    Args:
        model: Changed in place.
        method: One of the names above.
        sites: Pattern(s) on module paths as of :mod:`fnmatch`, or ``predicate(path, module)``.
        dry_run: List what would change, and change nothing.
        channelwise: For ``lcw`` and ``lcw-projection`` of convolutions: kernels sum to zero for
            each input channel by itself.
        scale: For ``cwn``: the fixed norm of every row; None to learn one a neuron.
        batch: For ``lcw-data``: inputs ``x``, a pair ``(x, y)``, or a mapping of keyword arguments.
            Layers are treated in order of execution, each with the mean that the constrained
            layers before it produce. A layer whose mean is within two standard errors of zero is
            skipped: its direction is noise.
        momentum: For ``lcw-data``: follow the mean while training, with this weight of a new
            batch; None keeps the measured mean.

    Returns:
        One entry a selected layer, with the reason where it is skipped. Where all are, a warning
        says so.

    Raises:
        UsageError: Unknown method, an option it does not have, no layer selected, a layer that
            obeys another constraint, or a model that is wrapped already.
        MeasureError: The model raised on ``batch``.

    Example:
        >>> import torch, shiftscope as ss
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Sigmoid())
        >>> [(change.site, change.action) for change in ss.constrain(model, "lcw")]
        [('0', 'constrain')]
        >>> bool(model[0].weight.sum(1).abs().max() < 1e-6)
        True

    Source:
        Kutsuna, ECML-PKDD 2019 (LCW); Chen and Ge, NeurIPS 2024 (GmP).
    """
    options = {"channelwise": channelwise, "scale": scale, "batch": batch, "momentum": momentum}
    _check(method, options)
    if dry_run and batch is not None:  # each mean depends on the constraints before it
        return constrain(copy.deepcopy(model), method, sites, batch=batch, momentum=momentum)
    layers = dict(choose(model, sites))
    refuse_wrapped(model)
    plan = [_planned(model, path, layer, method) for path, layer in layers.items()]
    _refuse_others(plan, method)
    todo = {change.site: layers[change.site] for change in plan if change.action == "constrain"}
    held = shapes_of(todo.values())
    if batch is not None:
        notes, failed = attach_by_data(model, todo, batch, momentum)
    else:
        options = {"channelwise": channelwise, "scale": scale}
        notes, failed = attach_all(todo, method, options, dry_run)
    changes = [_told(change, notes, failed) for change in plan]
    warn_of_optimizers(model, held)
    if not dry_run:
        warn_of_nothing([change.reason for change in changes if change.action == "skip"], changes)
    return changes


def release(model: nn.Module, sites: Sites = "*") -> list[Change]:
    """Bake constrained weights back into plain parameters; the model computes what it did.

    Names, order and identity of the parameters, the layer's class and its hooks are as before the
    constraint (a constraint of several tensors returns the parameter it replaced). Layers of
    :mod:`shiftscope.nn` keep their class, and their weight becomes a plain parameter too. What
    other libraries parametrised is left alone, and so are layers without a constraint. To train
    on, build the optimiser anew: it does not fit the parameters of before.

    Args:
        model: Changed in place.
        sites: As of :func:`constrain`.

    Returns:
        One entry a released layer; empty if there was nothing to do.

    Raises:
        UsageError: No layer is selected, or another parametrization was put on top of ours.
    """
    changes = []
    chosen = [(path, layer) for path, layer in choose(model, sites) if method_of(layer)]
    if chosen:
        refuse_wrapped(model)
    for path, layer in chosen:
        method = method_of(layer)
        detach(layer)
        changes.append(Change(path, type(layer).__name__, method, "release"))
    return changes


def is_constrained(model: nn.Module, method: str | None = None) -> bool:
    """Tell whether any layer of a model has a constraint of this library.

    Args:
        model: A model or a single layer.
        method: Only this one; None for any.
    """
    found = {method_of(layer) for layer in model.modules()} - {""}
    return bool(found) if method is None else method in found


def _check(method: str, options: dict[str, Any]) -> None:
    if method not in METHODS:
        raise UsageError(f"unknown method {shown(method)}", f"Use one of {', '.join(METHODS)}.")
    for name, value in options.items():
        if value is not None and value is not False and method not in _OPTIONS[name]:
            raise UsageError(
                f"method {method!r} has no option {name!r}",
                f"It belongs to {', '.join(_OPTIONS[name])}.",
            )
    scale, momentum = options["scale"], options["momentum"]
    if scale is not None and not scale > 0:
        raise UsageError(f"expected a positive scale, got {scale}", "Give the norm of a row.")
    if momentum is not None and not 0 < momentum <= 1:
        raise UsageError(f"expected a momentum in (0, 1], got {momentum}", "Use e.g. 0.1.")
    if method == "lcw-data" and options["batch"] is None:
        raise UsageError(
            "method 'lcw-data' needs data to measure the mean input of each layer",
            "Give batch=x.",
        )


def _planned(model: nn.Module, path: str, layer: nn.Module, method: str) -> Change:
    kind = type(layer).__name__
    has = method_of(layer)
    if has:
        kind = parametrize.type_before_parametrizations(layer).__name__
        return Change(path, kind, has, "keep")
    if parametrize.is_parametrized(layer, "weight"):
        return Change(path, kind, method, "skip", "its weight has a parametrization of its own")
    reason = obstacle(model, layer)
    return Change(path, kind, method, "skip" if reason else "constrain", reason)


def _refuse_others(plan: list[Change], method: str) -> None:
    others = [change for change in plan if change.action == "keep" and change.method != method]
    if others:
        first = others[0]
        raise UsageError(
            f"{first.site or 'the model'} obeys {first.method!r} already, not {method!r}"
            + (f" (and {len(others) - 1} more)" if len(others) > 1 else ""),
            "Release it first, or choose other sites.",
        )


def _told(change: Change, notes: dict[str, str], failed: dict[str, str]) -> Change:
    if change.site in failed:
        return replace(change, action="skip", reason=failed[change.site])
    return replace(change, reason=notes.get(change.site, change.reason))
