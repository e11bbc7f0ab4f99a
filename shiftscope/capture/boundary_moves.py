"""How activation boundaries move while a network trains, step by step, for any parametrisation.

Weights and biases are read as they take effect: through parametrisations of either kind, without
running a power iteration, and through a batch norm where one is to be folded in. Between two steps
one direction per unit is kept in the dtype of the weight and one offset in float64.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from shiftscope.capture.arguments import check_model, patterns
from shiftscope.capture.sites import clean_path, unwrapped
from shiftscope.errors import UsageError
from shiftscope.theory.boundaries import (
    Boundaries,
    Move,
    crossing_share,
    effective_batch_norm,
    locate,
    move,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BoundaryTracker", "effective_weight"]


class BoundaryTracker:
    """Records the moves of activation boundaries; call :meth:`step` after each optimiser step.

    Args:
        model: The model that is trained.
        sites: Pattern or patterns (``fnmatch``) of module paths; linear layers and convolutions
            among them are tracked.
        fold: Module path of a batch norm for the path of the layer it stands behind: its running
            statistics are folded in, as in evaluation mode.
        data: Inputs ``[samples, inputs]`` (patches, for a convolution) by module path: the share of
            units whose boundary runs through them is recorded as well.

    Raises:
        UsageError: It is no module, no layer fits, or ``fold`` or ``data`` names another module.

    Source: Chen and Ge, NeurIPS 2024, arXiv 2305.15912, Sec. 2 and Fig. 2.

    Example:
        >>> import torch, shiftscope as ss
        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> tracker = ss.BoundaryTracker(model)
        >>> model(torch.randn(32, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> moves = tracker.step()
        >>> moves[""].displacement.shape
        torch.Size([2])
    """

    def __init__(
        self,
        model: nn.Module,
        sites: str | Iterable[str] = "*",
        *,
        fold: Mapping[str, str] | None = None,
        data: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_model(model)
        modules = {clean_path(path): m for path, m in unwrapped(model).named_modules()}
        self._layers = _chosen(modules, patterns("sites", sites))
        self._norms = _norms(modules, fold or {}, self._layers)
        self._data = dict(data or {})
        strange = [path for path in self._data if path not in self._layers]
        if strange:
            raise UsageError(
                f"data are given for {strange[0]!r}, which is not tracked",
                f"tracked are {', '.join(map(repr, self._layers))}",
            )
        self._before: dict[str, Boundaries] = {}
        self._rows: list[dict[str, Any]] = []
        self._moved: dict[str, list[npt.NDArray[np.float64]]] = {path: [] for path in self._layers}
        self.steps = 0
        self.mark()

    @property
    def sites(self) -> tuple[str, ...]:
        """Paths of the layers that are tracked."""
        return tuple(self._layers)

    def mark(self) -> None:
        """Take the boundaries as they are now for those before the next step."""
        self._before = {path: locate(*self.effective(path)) for path in self._layers}

    def step(self, number: int | None = None) -> dict[str, Move]:
        """Record how far boundaries moved since the last step, or :meth:`mark`.

        Args:
            number: Number of the step in the table; None counts from 1.

        Returns:
            The moves by module path.
        """
        self.steps += 1
        made = {}
        for path in self._layers:
            weight, bias = self.effective(path)
            after = locate(weight, bias)
            moved = move(self._before[path], after)
            self._before[path], made[path] = after, moved
            self._moved[path].append(moved.displacement.cpu().numpy())
            share = self._share(path, weight, bias)
            self._rows.append(_row(self.steps if number is None else number, path, moved, share))
        return made

    def effective(self, path: str) -> tuple[Tensor, Tensor | None]:
        """Read the weight and bias of a layer as they take effect.

        Args:
            path: Its module path.

        Returns:
            Weight with the units first, and bias.
        """
        layer = self._layers[path]()
        if layer is None:
            raise UsageError(f"the layer {path!r} is gone", "keep the model while it is tracked")
        weight, bias = effective_weight(layer)
        reference = self._norms.get(path)
        norm: Any = None if reference is None else reference()
        if norm is None:
            return weight, bias
        with torch.no_grad():
            moments = norm.running_mean, norm.running_var
            return effective_batch_norm(weight, bias, *moments, norm.weight, norm.bias, norm.eps)

    def displacements(self, path: str) -> npt.NDArray[np.float64]:
        """Distances ‖Δφ‖ that the boundaries of a layer moved, for ``ss.draw.boundary_moves``.

        Args:
            path: Its module path.

        Returns:
            ``[steps, units]``; NaN where a unit has no boundary.
        """
        kept = self._moved[path]
        return np.stack(kept) if kept else np.empty((0, 0))

    def frame(self) -> pd.DataFrame:
        """One row a step and layer.

        Returns:
            Columns ``step, site, angle_mean, angle_max`` (radians), ``offset_change_mean`` (of
            |Δλ|), ``displacement_mean, displacement_max, spread, crossing_share``; NaN where
            no unit has a boundary, or no data were given.
        """
        import pandas as pd

        return pd.DataFrame(self._rows, columns=_COLUMNS)

    def _share(self, path: str, weight: Tensor, bias: Tensor | None) -> float:
        data = self._data.get(path)
        return (
            float("nan") if data is None else crossing_share(weight, bias, data.to(weight.device))
        )


_COLUMNS = [
    *("step", "site", "angle_mean", "angle_max", "offset_change_mean"),
    *("displacement_mean", "displacement_max", "spread", "crossing_share"),
]


def effective_weight(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Read weight and bias of a layer as its next forward pass would use them.

    Nothing of the layer changes: a spectral norm makes no power iteration, and a weight norm of the
    old kind (by forward pre-hook) is computed anew, since its attribute is that of the last pass.

    Args:
        layer: A linear layer or a convolution, transposed or not.

    Returns:
        Detached weight ``[units, ...]`` and bias ``[units]``, or None without bias.

    Raises:
        UsageError: A transposed convolution of several groups.
    """
    with torch.no_grad(), _evaluating(layer):
        hooked = _hooked(layer)
        weight: Any = layer.weight if hooked is None else hooked
        bias: Any = layer.bias
        if isinstance(layer, _ConvTransposeNd):
            if layer.groups > 1:
                raise UsageError(
                    "boundaries of transposed convolutions are tracked without groups only, got "
                    f"{layer.groups}",
                    "leave the layer out of `sites`",
                )
            weight = weight.transpose(0, 1)
        return weight.detach().clone(), None if bias is None else bias.detach().clone()


def _hooked(layer: nn.Module) -> Tensor | None:
    """The weight by torch.nn.utils.weight_norm or spectral_norm, None where neither is applied."""
    for hook in layer._forward_pre_hooks.values():
        if getattr(hook, "name", "") == "weight" and hasattr(hook, "compute_weight"):
            iterates = hasattr(hook, "n_power_iterations")
            options = {"do_power_iteration": False} if iterates else {}
            computed: Tensor = hook.compute_weight(layer, **options)
            return computed
    return None


@contextmanager
def _evaluating(layer: nn.Module) -> Iterator[None]:
    """Evaluation mode for the parametrisations of a layer, which may else change their state."""
    modes = [(module, module.training) for module in layer.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _chosen(
    modules: Mapping[str, nn.Module], wanted: tuple[str, ...]
) -> dict[str, weakref.ref[nn.Module]]:
    layers = {p: m for p, m in modules.items() if isinstance(m, nn.Linear | _ConvNd)}
    found = {p: m for p, m in layers.items() if any(fnmatchcase(p, q) for q in wanted)}
    if not found:
        raise UsageError(
            f"no linear layer or convolution is called {' or '.join(map(repr, wanted))}",
            f"there are {', '.join(map(repr, layers)) or 'none'}",
        )
    return {path: weakref.ref(module) for path, module in found.items()}


def _norms(
    modules: Mapping[str, nn.Module], fold: Mapping[str, str], layers: Mapping[str, Any]
) -> dict[str, weakref.ref[nn.Module]]:
    for path, norm in fold.items():
        behind = modules.get(norm)
        if path not in layers or not isinstance(behind, _BatchNorm) or behind.running_var is None:
            raise UsageError(
                f"{norm!r} cannot be folded into {path!r}",
                "name a tracked layer and a batch norm with running statistics behind it",
            )
    return {path: weakref.ref(modules[norm]) for path, norm in fold.items()}


def _row(step: int, path: str, moved: Move, share: float) -> dict[str, Any]:
    angles, offsets = moved.angular_change.double(), moved.offset_change.abs()
    known = angles[~angles.isnan()]
    return {
        "step": step,
        "site": path,
        "angle_mean": float(known.mean()) if len(known) else float("nan"),
        "angle_max": float(known.max()) if len(known) else float("nan"),
        "offset_change_mean": float(offsets.nanmean()),
        "displacement_mean": moved.mean_displacement,
        "displacement_max": moved.max_displacement,
        "spread": moved.spread_after,
        "crossing_share": share,
    }
