"""One layer: put a constraint on its weight, scale it inside the constraint, take it off again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from shiftscope.capture.visits import on_forward
from shiftscope.errors import UsageError
from shiftscope.fix.kin import CWN, GmP, GmPOffset
from shiftscope.fix.lcw import LCW, Constraint, DataLCW, DataLCWProjection, LCWProjection
from shiftscope.fix.means import MeanFollower
from shiftscope.fix.unroll import Unroll, is_input_first

__all__ = ["attach", "detach", "method_of", "scale_"]

_RECORD = "_shiftscope"


@dataclass
class _Record:
    """What is needed to put a layer back as it was; lies on the layer's parametrization list."""

    method: str
    order: tuple[str, ...]
    """Names of the layer's own parameters, in their order."""
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    """Emptied parameters that several originals stand for: they return with their identity."""
    load_hooks: tuple[int, ...] = ()
    """State dict hooks that torch's own constraint added."""
    strides: tuple[int, ...] | None = None
    """Of a dense weight whose dimensions lie in another order (channels last)."""


def attach(module: Any, method: str, *, dry_run: bool = False, **options: Any) -> None:
    """Constrain the weight of one layer.

    Args:
        module: A linear layer or convolution whose weight is a plain parameter.
        method: One of ``METHODS`` in :mod:`shiftscope.fix.constrain`.
        dry_run: Check only, change nothing.
        **options: ``channelwise``, ``scale``, ``mean`` or ``momentum``, where the method has them.

    Raises:
        UsageError: The layer cannot satisfy the constraint.
    """
    weight, bias = module.weight, module.bias
    record = _Record(method, tuple(module._parameters), strides=_strides(weight))
    if method == "gmp":
        _check_offset(module)
    if method in ("weight_norm", "spectral_norm"):
        _check_directions(module, method)
    constraint = None
    if method not in ("weight_norm", "spectral_norm"):
        constraint = _constraint(method, Unroll.of(module), weight, **options)
    if dry_run:
        return
    weight.grad = None  # it has the shape of the unconstrained weight
    if constraint is None:
        _attach_torch(module, method, record)
    else:
        parametrize.register_parametrization(module, "weight", constraint)
    _keep(module.parametrizations["weight"], record, "weight", weight)
    if method == "gmp" and bias is not None:
        bias.grad = None
        offset = GmPOffset(module.parametrizations["weight"])
        parametrize.register_parametrization(module, "bias", offset)
    if options.get("momentum") is not None:
        on_forward(module, MeanFollower(options["momentum"]))


def detach(module: Any) -> None:
    """Bake the constrained weight into a plain parameter and leave no trace of the constraint.

    Raises:
        UsageError: A parametrization that is not ours was put on top.
    """
    weights = module.parametrizations["weight"]
    if len(weights) > 1:
        raise UsageError(
            f"{len(weights)} parametrizations are stacked on the weight of {module}",
            "Remove the ones that were added later first.",
        )
    record = getattr(weights, _RECORD, None) or _Record("", ("weight", "bias"))
    frozen = not any(p.requires_grad for p in weights.parameters())
    weights.eval()  # reading a spectral norm in training would change it
    _own_class(module)
    for name in ("bias", "weight"):
        if name in module.parametrizations and (name == "weight" or record.method == "gmp"):
            _bake(module, name, record.parameters.get(name), frozen)
            if name == "weight" and record.strides is not None:
                _lay_out(module.weight, record.strides)
            if not parametrize.is_parametrized(module):
                break
    for key in record.load_hooks:
        module._load_state_dict_pre_hooks.pop(key, None)
    for key in [k for k, h in module._forward_hooks.items() if isinstance(h, MeanFollower)]:
        del module._forward_hooks[key]
    own = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({k: own.pop(k) for k in record.order if k in own}, **own)


def method_of(module: nn.Module) -> str:
    """Name the constraint on a layer's weight; empty if there is none of ours."""
    if not parametrize.is_parametrized(module, "weight"):
        return ""
    weights = cast(Any, module).parametrizations["weight"]
    record = getattr(weights, _RECORD, None)
    if record is not None:
        return str(record.method)
    return weights[0].method if isinstance(weights[0], Constraint) else ""


@torch.no_grad()
def scale_(module: Any, factor: Tensor) -> None:
    """Multiply the weight of each neuron in place, whatever constraint it obeys; not the bias.

    Args:
        module: A linear layer or convolution.
        factor: Positive factors, shape ``()`` or ``(neurons,)``.

    Raises:
        UsageError: The constraint fixes the scale.
    """
    if not parametrize.is_parametrized(module, "weight"):
        unroll = Unroll.of(module)
        rows = unroll.rows(module.weight) * factor.to(module.weight).reshape(-1, 1)
        module.weight.copy_(unroll.fold(rows))
        return
    weights = module.parametrizations["weight"]
    offset = parametrize.is_parametrized(module, "bias")
    bias = module.bias.clone() if offset else None
    if isinstance(weights[0], Constraint) and len(weights) == 1:
        weights[0].scale_(tuple(_originals(weights)), factor)
    elif type(weights[0]).__name__ == "_WeightNorm" and not is_input_first(module):
        g = weights.original0
        g.mul_(factor.to(g).reshape(-1, *[1] * (g.ndim - 1)))
    else:
        _assign_scaled(module, weights, factor)
    if offset:
        module.bias = bias


def _assign_scaled(module: Any, weights: Any, factor: Tensor) -> None:
    """Through the parametrization's own inverse; refuse where it drops the scale."""
    training = weights.training
    weights.eval()
    try:
        unroll = Unroll.of(module)
        wanted = unroll.fold(unroll.rows(module.weight) * factor.to(module.weight).reshape(-1, 1))
        before = [p.clone() for p in _originals(weights)]
        try:
            module.weight = wanted
            kept = torch.allclose(module.weight, wanted, rtol=1e-2, atol=0)
        except (RuntimeError, NotImplementedError):
            kept = False
        if not kept:
            for p, value in zip(_originals(weights), before, strict=True):
                p.copy_(value)
            raise UsageError(
                f"{type(weights[0]).__name__} fixes the scale of the weight, or cannot be assigned",
                "Rescale before constraining, or leave this layer out.",
            )
    finally:
        weights.train(training)


def _constraint(method: str, unroll: Unroll, weight: Tensor, **options: Any) -> Constraint:
    if method == "lcw":
        return LCW(unroll, channelwise=options.get("channelwise", False))
    if method == "lcw-projection":
        return LCWProjection(unroll, channelwise=options.get("channelwise", False))
    if method == "cwn":
        return CWN(unroll, scale=options.get("scale"))
    if method == "gmp":
        return GmP(unroll)
    running = options.get("momentum") is not None
    wide = torch.promote_types(weight.dtype, torch.float32)  # a mean may overflow float16
    mean = options["mean"].to(weight.device, wide)
    return (DataLCWProjection if running else DataLCW)(unroll, mean)


def _attach_torch(module: Any, method: str, record: _Record) -> None:
    hooks = set(module._load_state_dict_pre_hooks)
    if method == "spectral_norm":
        parametrizations.spectral_norm(module, "weight")
    else:
        parametrizations.weight_norm(module, "weight", dim=int(is_input_first(module)))
    record.load_hooks = tuple(k for k in module._load_state_dict_pre_hooks if k not in hooks)


def _keep(weights: Any, record: _Record, name: str, parameter: nn.Parameter) -> None:
    if not weights.is_tensor:
        record.parameters[name] = parameter
        parameter.data = parameter.data.new_empty(0)
    setattr(weights, _RECORD, record)


def _bake(module: Any, name: str, kept: nn.Parameter | None, frozen: bool) -> None:
    parametrize.remove_parametrizations(module, name)
    if kept is None:
        kept = getattr(module, name)
    else:
        kept.data = getattr(module, name).detach()
    delattr(module, name)
    if not isinstance(kept, nn.Parameter):
        kept = nn.Parameter(kept.detach())
    kept.grad = None
    module.register_parameter(name, kept.requires_grad_(not frozen))


def _strides(weight: Tensor) -> tuple[int, ...] | None:
    """The strides of a weight that is dense in another order than the usual one."""
    if weight.is_contiguous():
        return None
    dense = torch.empty_like(weight, device="meta").stride() == weight.stride()
    return weight.stride() if dense else None


def _lay_out(weight: nn.Parameter, strides: tuple[int, ...]) -> None:
    values = weight.detach()
    weight.data = torch.empty_strided(
        weight.shape, strides, dtype=weight.dtype, device=weight.device
    ).copy_(values)


def _own_class(module: nn.Module) -> None:
    """Deep copies share the class torch made; removing here must not change the others."""
    cls = type(module)
    own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(cls.__name__, cls.__bases__, own)


def _originals(weights: Any) -> Iterator[Tensor]:
    if weights.is_tensor:
        yield weights.original
    else:
        yield from (getattr(weights, f"original{i}") for i in range(weights.ntensors))


def _check_directions(module: Any, method: str) -> None:
    """Torch divides by norms, and makes NaN where there is none."""
    if module.weight.is_meta:
        return
    zero = Unroll.of(module).rows(module.weight).abs().amax(1) == 0
    if bool(zero.all()) or (method == "weight_norm" and bool(zero.any())):
        lost = zero.nonzero().flatten().tolist()
        raise UsageError(
            f"neurons {lost[:8]} have zero weights, of which {method} makes NaN",
            "Re-draw them, or leave the layer out.",
        )


def _check_offset(module: Any) -> None:
    if module.bias is None:
        return
    zero = Unroll.of(module).rows(module.weight).abs().amax(1) == 0
    lost = (zero & (module.bias != 0)).nonzero().flatten().tolist()
    if lost:
        raise UsageError(
            f"neurons {lost[:8]} have zero weights and a bias: no boundary to parametrise",
            "Set these biases to zero, or re-draw the weights.",
        )
