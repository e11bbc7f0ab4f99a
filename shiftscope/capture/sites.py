"""Names: which module an op belongs to, and what the site is called.

A site is named by module path; ``path:op`` for a function called inside that module; ``:op.2``,
``:op.3`` for its further places within one forward call. An op on weights that another module owns
is named after the owner. Path and owner both fitting (tied weights), the running module wins.

What is met at a place in another form (a layer that was swapped for one of another kind or width, a
shared activation of several widths) is another site: ``path~2``, ``path~3``, in the order in which
the forms came. Each has its own rows and curves, which begin and end with it; patterns that keep a
place keep all its forms. A dot would not do, as ``path.2`` may be the name of a child.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from shiftscope.capture.calls import known_as

__all__ = ["Frame", "Names", "clean_path", "forms_of", "names_itself", "place_of", "unwrapped"]

_WRAPPER_SEGMENTS = re.compile(
    r"(^|(?<=\.))(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module)(\.|$)"
)
_FORM = re.compile(r"~\d+$")
_ACTIVATION_HOME = "torch.nn.modules.activation"
_OWN = ""
"""Stands for a layer's own map among the counts of a call."""
_LAYERS = (nn.Linear, nn.Bilinear, _ConvNd)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside data-parallel and compile wrappers."""
    wrappers = ("OptimizedModule", "DistributedDataParallel", "DataParallel")
    inner = model
    while type(inner).__name__ in wrappers:
        inner = getattr(inner, "_orig_mod", None) or inner.module  # type: ignore[assignment]
    return inner


def clean_path(path: str) -> str:
    """A module path without the segments that wrappers put in."""
    return _WRAPPER_SEGMENTS.sub("", path).rstrip(".")


def forms_of(place: str) -> Iterator[str]:
    """Names of the sites at a place, one for each form of what is met there."""
    yield place
    for number in itertools.count(2):
        yield f"{place}~{number}"


def place_of(site: str) -> str:
    """The place of a site: its name without the number of its form."""
    return _FORM.sub("", site)


def names_itself(module: nn.Module) -> bool:
    """Whether a site may have the path of a module for its name: a layer or an activation."""
    if isinstance(module, torch.jit.ScriptModule | nn.MultiheadAttention):
        return False
    if type(module).__module__ == _ACTIVATION_HOME or isinstance(module, _LAYERS):
        return True  # also where a flat parameter holds its weight
    own = (module._parameters, module.__dict__, module.__dict__.get("_former_parameters", {}))
    parametrized = getattr(module._modules.get("parametrizations"), "_modules", {})
    return any("weight" in place for place in (*own, parametrized))


@known_as("frame")
@dataclass(slots=True)
class Frame:
    """One running call of a module.

    Attributes:
        path: The module's name.
        module: The module.
        counts: How often each op label was named in this call.
        label: Overrides the op label while a fused op is looked into.
        pooled: Whether further calls of one label are the same place (time steps of a loop).
        plans: What is known of the ops of this module from earlier calls, in order.
        index: Number of the next op.
        single: Whether the call ends with its first op.
    """

    path: str
    module: nn.Module
    counts: dict[str, int] = field(default_factory=dict)
    label: dict[str, str] | None = None
    pooled: bool = False
    plans: list[Any] | None = None
    index: int = 0
    single: bool = False


class Names:
    """Module names and parameter owners of one model, read once.

    Args:
        model: The (unwrapped) model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.paths: dict[nn.Module, str] = {}
        self.owners: dict[int, tuple[str, str]] = {}
        # named_modules() visits a module that has two names once, under the first one.
        for name, module in model.named_modules():
            self.paths[module] = clean_path(name)
        places = [d for m in self.paths for d in (m._modules, m._parameters)]
        self._places = [d for d in places if isinstance(d, dict)]  # not those of TorchScript
        self._parts = list(_values(self._places))
        for module, path in self.paths.items():
            # _parameters, not getattr: a parametrised weight would be recomputed by reading it,
            # and a spectral norm would run a power iteration.
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    self.owners.setdefault(id(parameter), (path, key))

    @property
    def outdated(self) -> bool:
        """Whether a module or a parameter was added, swapped or removed since."""
        # Asked at every recorded step, hence no loop in Python.
        if sum(map(len, self._places)) != len(self._parts):
            return True
        return not all(map(operator.is_, _values(self._places), self._parts))

    def linear(self, frame: Frame, op: str, weight: Tensor) -> str:
        """The site of a linear op that runs inside ``frame``."""
        if _holds(frame.module, weight):
            return frame.path or self._function(frame, op)
        owner = self.owner_of(weight)
        if owner is not None and owner[1] == "weight":
            return owner[0]
        if owner is None and frame.path and _computes(frame, weight):
            frame.counts[_OWN] = 1
            return frame.path
        return self._function(frame, op)

    def activation(self, frame: Frame, op: str) -> str:
        """The site of an activation op that runs inside ``frame``."""
        if type(frame.module).__module__ == _ACTIVATION_HOME and not frame.label:
            return frame.path or op
        return self._function(frame, op)

    def owner_of(self, tensor: Any) -> tuple[str, str] | None:
        """``(module path, parameter name)`` of a parameter or of a view of one."""
        if not isinstance(tensor, Tensor):
            return None
        found = self.owners.get(id(tensor))
        base = tensor._base
        return found if found is not None or base is None else self.owners.get(id(base))

    def carriers(self, frame: Frame, weight: Tensor) -> set[str]:
        """Paths of the module that owns the weight and of the one that runs, if it has it too."""
        owner = self.owner_of(weight)
        if owner is None:
            return {frame.path}
        # A module that runs the weight of another one may have weights of its own to tell of.
        held = weight if weight._base is None else weight._base
        own = any(held is parameter for parameter in frame.module._parameters.values())
        return {frame.path, owner[0]} if own else {owner[0]}

    def lasts(self, weight: Tensor) -> bool:
        """Whether a weight is held by its module when nothing runs; else it may be freed then."""
        held = weight if weight._base is None else weight._base
        # A flat parameter is held, but shrinks to its shard between the calls.
        return id(held) in self.owners and not getattr(held, "_is_flat_param", False)

    def is_weight(self, tensor: Any, frame: Frame) -> bool:
        """Whether a tensor is a weight: a parameter, a view of one, or computed from one only."""
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return False
        if isinstance(tensor, nn.Parameter) or self.owner_of(tensor) is not None:
            return True
        if isinstance(tensor._base, nn.Parameter):
            return True
        if any(tensor is held for held in _held(frame.module)):
            return True
        return _derived_from_parameter(tensor)

    def _function(self, frame: Frame, op: str) -> str:
        label = frame.label.get(op, op) if frame.label else op
        if frame.pooled:
            return f"{frame.path}:{label}"
        count = frame.counts[label] = frame.counts.get(label, 0) + 1
        return f"{frame.path}:{label}" + (f".{count}" if count > 1 else "")


def _values(places: Iterable[Any]) -> Iterator[Any]:
    return itertools.chain.from_iterable(map(dict.values, places))


def _holds(module: nn.Module, weight: Tensor) -> bool:
    """Whether ``weight`` is this module's own ``weight``, stored or computed."""
    stored = module._parameters.get("weight", module.__dict__.get("weight"))
    if stored is not None:
        return weight is stored or weight._base is stored
    former = module.__dict__.get("_former_parameters", {}).get("weight")
    if former is not None:
        return weight is former
    parametrizations = module._modules.get("parametrizations")
    return parametrizations is not None and "weight" in parametrizations._modules


def _computes(frame: Frame, weight: Tensor) -> bool:
    """Whether a layer runs its weight as it computes it anew (standardised, masked), once a call.

    Its own kind of layer is meant: the class is one of torch's, with another forward.
    """
    own = frame.module._parameters.get("weight")
    fits = isinstance(frame.module, _LAYERS) and own is not None and own.shape == weight.shape
    return fits and not isinstance(weight, nn.Parameter) and _OWN not in frame.counts


def _held(module: nn.Module) -> list[Tensor]:
    places = (module._parameters, module.__dict__, module.__dict__.get("_former_parameters", {}))
    return [value for place in places for value in place.values() if isinstance(value, Tensor)]


_SHAPING = re.compile(
    r"(T|Transpose|Permute|View|UnsafeView|ReshapeAlias|Expand|Unsqueeze|Squeeze|Slice|Select|"
    r"Split|SplitWithSizes|ToCopy|Clone|Mul|Div|Add|Sub|Alias)Backward\d*"
)
"""Nodes of shaping and scaling, by their whole names: AddmmBackward0 is a linear map."""


def _derived_from_parameter(tensor: Tensor) -> bool:
    """A tensor made from parameters by shaping and scaling alone (a mask, a transpose)."""
    pending, found, steps = [tensor.grad_fn], False, 0
    while pending:
        node = pending.pop()
        steps += 1
        if node is None:
            continue
        name = node.name()
        if name == "torch::autograd::AccumulateGrad":
            if not isinstance(getattr(node, "variable", None), nn.Parameter):
                return False
            found = True
        elif steps > 12 or _SHAPING.fullmatch(name) is None:
            return False
        else:
            pending += [child for child, _ in node.next_functions]
    return found
