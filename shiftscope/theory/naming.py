"""From a torch module, class or function to the name of the activation it computes."""

from __future__ import annotations

from typing import Any, NamedTuple

from shiftscope.errors import UsageError
from shiftscope.theory import catalogue

__all__ = ["Canonical", "canonical"]


class Canonical(NamedTuple):
    """An activation by its catalogue name and its parameters, torch's defaults filled in."""

    name: str
    parameters: dict[str, Any]


_ALIASES = {
    "absolute": "abs",
    "clip": "clamp",
    "hard_sigmoid": "hardsigmoid",
    "hard_swish": "hardswish",
    "leakyrelu": "leaky_relu",
    "log_sigmoid": "logsigmoid",
    "relu2": "relu_squared",
    "special_erf": "erf",
    "special_expit": "sigmoid",
    "swish": "silu",
}
"""Further spellings of functions and names."""

_MODULES = {
    "CELU": "celu",
    "ELU": "elu",
    "GELU": "gelu",
    "Hardshrink": "hardshrink",
    "Hardsigmoid": "hardsigmoid",
    "Hardswish": "hardswish",
    "Hardtanh": "hardtanh",
    "Identity": "identity",
    "LeakyReLU": "leaky_relu",
    "LogSigmoid": "logsigmoid",
    "Mish": "mish",
    "PReLU": "prelu",
    "RReLU": "rrelu",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "SELU": "selu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Softshrink": "softshrink",
    "Softsign": "softsign",
    "Tanh": "tanh",
    "Tanhshrink": "tanhshrink",
    "Threshold": "threshold",
}
"""Classes of ``torch.nn``."""

_TRANSFORMERS = {
    "FastGELUActivation": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "GELUActivation": "gelu",
    "LinearActivation": "identity",
    "MishActivation": "mish",
    "QuickGELUActivation": "quick_gelu",
    "ReLUSquaredActivation": "relu_squared",
    "SiLUActivation": "silu",
}
"""Classes of ``transformers.activations``."""

_ARGUMENTS = {"clamp": ("min", "max"), "gelu": ("approximate",), "prelu": ("weight",)}
"""Order of the arguments behind the input, where it is not that of the catalogue's parameters."""

_IGNORED = frozenset({"inplace", "training", "out"})


def canonical(activation: Any, *args: Any, **kwargs: Any) -> Canonical | None:
    """The catalogue name and parameters of an activation, or None if the catalogue has none.

    >>> canonical("leaky_relu", 0.2)
    Canonical(name='leaky_relu', parameters={'negative_slope': 0.2})

    Args:
        activation: A name, an ``nn.Module`` instance or class, or a torch function or method such
            as ``torch.nn.functional.gelu`` or ``torch.Tensor.relu_``.
        *args: For functions: the positional arguments of the call behind the input.
        **kwargs: Keyword arguments of the call, or parameters by torch's names.

    Returns:
        Name and parameters with defaults filled in; None for anything unknown. Per-channel
        ``PReLU`` weights come as an array. ``rrelu`` is taken at its evaluation slope.

    Raises:
        UsageError: A parameter that the named activation does not have.
    """
    if isinstance(activation, str):
        return _fill(activation, args, kwargs)
    if isinstance(activation, type):
        name = _class_name(activation)
        return None if name is None else _fill(name, args, kwargs)
    if hasattr(activation, "forward") and hasattr(activation, "state_dict"):
        return _of_module(activation)
    name = getattr(activation, "__name__", None)
    if name is None or not _is_torch(activation):
        return None
    # Overloads of aten carry theirs behind a dot, in-place forms end in an underscore.
    return _fill(name.split(".")[0].strip("_"), args, kwargs)


def _is_torch(function: Any) -> bool:
    """Whether a function or method descriptor comes from torch."""
    module = getattr(function, "__module__", None) or ""
    owner = getattr(function, "__objclass__", None)
    return (
        module.split(".")[0] == "torch"
        or (owner is not None and owner.__module__.split(".")[0] == "torch")
        or (module == "" and str(getattr(function, "__self__", "")).find("torch") >= 0)
    )


def _class_name(kind: type) -> str | None:
    """The activation name of a module class, by its own or its nearest library ancestor's name."""
    for base in kind.__mro__:
        home = base.__module__.split(".")[0]
        if home == "torch" and base.__name__ in _MODULES:
            # A subclass with its own forward computes something else.
            own = kind is base or kind.__dict__.get("forward") is None
            return _MODULES[base.__name__] if own else None
        if home == "transformers" and base.__name__ in _TRANSFORMERS:
            return _TRANSFORMERS[base.__name__]
    return None


def _of_module(module: Any) -> Canonical | None:
    name = _class_name(type(module))
    if name is None:
        return None
    if name == "gelu" and getattr(module, "approximate", "none") == "tanh":
        name = "gelu_tanh"
    values = {k: getattr(module, k) for k in catalogue.defaults(name) if hasattr(module, k)}
    return _fill(name, (), values)


def _fill(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Canonical | None:
    """Bind call arguments to parameters and add the defaults."""
    name = _ALIASES.get(name, name)
    order = _ARGUMENTS.get(name) or tuple(catalogue.defaults(name))
    given = {**dict(zip(order, args, strict=False)), **kwargs}
    given = {k: v for k, v in given.items() if k not in _IGNORED}
    if name == "clamp":
        return _clamp(given)
    if name == "gelu" and given.pop("approximate", "none") == "tanh":
        name = "gelu_tanh"
    if name not in catalogue.names():
        return None
    parameters = catalogue.defaults(name)
    stray = sorted(set(given) - set(parameters))
    if stray:
        raise UsageError(
            f"{name} has no parameter {stray[0]!r}",
            f"Its parameters are: {', '.join(parameters) or 'none'}.",
        )
    return Canonical(name, {**parameters, **{k: _plain(v) for k, v in given.items()}})


def _clamp(given: dict[str, Any]) -> Canonical | None:
    """Clamp and clip are hardtanh with possibly open ends."""
    low, high = given.get("min"), given.get("max")
    if low is None and high is None:
        return None
    bounds = [_plain(-float("inf") if low is None else low)]
    bounds.append(_plain(float("inf") if high is None else high))
    if any(not isinstance(b, float) for b in bounds):
        return None
    return Canonical("hardtanh", {"min_val": bounds[0], "max_val": bounds[1]})


def _plain(value: Any) -> Any:
    """A parameter as a float, or as an array where it has several elements."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    if getattr(value, "size", 1) == 1:
        return float(value.reshape(())) if hasattr(value, "reshape") else float(value)
    return value
