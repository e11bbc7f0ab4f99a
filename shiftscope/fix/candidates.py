"""The fixes that can be tried on a model: how each is applied, and the code that does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from shiftscope.errors import UsageError
from shiftscope.fix.choose import Sites, choose
from shiftscope.fix.constrain import METHODS, Change, constrain
from shiftscope.fix.initialise import Rescaled, absorb_bias_, rescale_, standardize_
from shiftscope.fix.preserving import preserve_means_
from shiftscope.fix.unroll import is_linear_map
from shiftscope.given import shown

__all__ = ["FIXES", "Candidate", "candidate", "candidates_for"]

FIXES = (*METHODS, "standardize", "absorb-bias", "rescale")
"""What :func:`candidate` takes: constraints, and what is done once by scale and bias."""

_ONCE: dict[str, Callable[..., list[Rescaled]]] = {
    "standardize": standardize_,
    "absorb-bias": absorb_bias_,
}
_FOR_SHIFT = (("lcw", True), ("lcw-data", True), ("standardize", False))
_FOR_SCALE = (("rescale", True),)
_REMEDIES: dict[str, tuple[tuple[str, bool], ...]] = {
    "activation_shift": _FOR_SHIFT,
    "vanishing_gradient": (*_FOR_SHIFT, *_FOR_SCALE),
    "variance_collapse": (*_FOR_SHIFT, *_FOR_SCALE),
    "exploding_gradient": _FOR_SCALE,
    "weight_scale": _FOR_SCALE,
    "saturation": (*_FOR_SCALE, ("standardize", False)),
    "dead_units": (("absorb-bias", False), ("lcw-data", False)),
    "below_resolution": _FOR_SHIFT,
    "not_learning": _FOR_SHIFT,
}
"""Cause -> fixes worth trying, each with whether unit variance is restored afterwards."""


@dataclass(frozen=True)
class Candidate:
    """One fix, not applied to anything yet.

    Attributes:
        method: One of :data:`FIXES`.
        rescale: Whether every layer is brought to unit variance afterwards.
        mean_preserving: Whether biases make up for the means that a constraint takes away.
        sites: Which layers, as of :func:`shiftscope.fix.constrain.constrain`.
    """

    method: str
    rescale: bool = False
    mean_preserving: bool = False
    sites: Sites = "*"

    @property
    def name(self) -> str:
        """The fix in a few words: ``lcw, rescaled``."""
        words = [self.method]
        words += ["mean-preserving"] if self.mean_preserving else []
        words += ["rescaled"] if self.rescale and self.method != "rescale" else []
        return ", ".join(words)

    @property
    def code(self) -> str:
        """What to write to apply it to ``model`` with ``batch``."""
        where = "" if self.sites == "*" or callable(self.sites) else f", sites={self.sites!r}"
        lines = []
        if self.mean_preserving:
            lines.append(
                f'preserve_means_(model, batch, "{self.method}"{where})'
                "  # from shiftscope.fix.preserving import preserve_means_"
            )
        elif self.method in _ONCE:
            name = _ONCE[self.method].__name__
            lines.append(
                f"{name}(model, batch{where})  # from shiftscope.fix.initialise import {name}"
            )
        elif self.method != "rescale":
            batch = ", batch=batch" if self.method == "lcw-data" else ""
            lines.append(f'ss.constrain(model, "{self.method}"{where}{batch})')
        if self.rescale:
            lines.append(f"ss.rescale_(model, batch{where})")
        return "\n".join(lines)

    def apply(self, model: nn.Module, batch: Any) -> list[Change]:
        """Apply the fix.

        Args:
            model: Changed in place.
            batch: Inputs to measure means and deviations on.

        Returns:
            One entry a layer, with the reason where it is left alone.

        Raises:
            UsageError: The fix has no layer to work on.
            MeasureError: A layer cannot be rescaled, since it does not vary.
        """
        changes = self._constrain(model, batch)
        if self.rescale:
            done = rescale_(model, batch, sites=self.sites)
            changes = changes or [_changed(model, entry, self.method) for entry in done]
        return changes

    def _constrain(self, model: nn.Module, batch: Any) -> list[Change]:
        if self.mean_preserving:
            return preserve_means_(model, batch, self.method, self.sites)
        if self.method in _ONCE:
            kept = _with_bias(model, self.sites)
            done = _ONCE[self.method](model, batch, sites=lambda path, _: path in kept)
            return [_changed(model, entry, self.method) for entry in done]
        if self.method == "rescale":
            return []
        options = {"batch": batch} if self.method == "lcw-data" else {}
        return constrain(model, self.method, self.sites, **options)


def candidate(
    method: str, *, rescale: bool = False, mean_preserving: bool = False, sites: Sites = "*"
) -> Candidate:
    """Check and make a candidate.

    Args:
        method: One of :data:`FIXES`.
        rescale: Whether every layer is brought to unit variance afterwards.
        mean_preserving: Whether biases make up for what the constraint takes from the means.
        sites: Which layers.

    Returns:
        The candidate.

    Raises:
        UsageError: An unknown method, or a combination without meaning.
    """
    if method not in FIXES:
        raise UsageError(f"unknown fix {shown(method)}", f"Use one of {', '.join(FIXES)}.")
    if mean_preserving and method not in ("lcw", "lcw-projection", "lcw-data"):
        raise UsageError(
            f"{method!r} cannot preserve means", "Use lcw, lcw-projection or lcw-data with it."
        )
    if mean_preserving and rescale:
        raise UsageError(
            "rescaling changes the function that mean-preserving weights are to keep",
            "Choose one of the two.",
        )
    if rescale and method in ("standardize", "spectral_norm"):
        raise UsageError(f"{method!r} sets the scale itself", "Leave rescaling out.")
    return Candidate(method, rescale or method == "rescale", mean_preserving, _hashable(sites))


def candidates_for(causes: Iterable[str], sites: Sites = "*") -> dict[Candidate, tuple[str, ...]]:
    """List the fixes worth trying against some causes.

    Args:
        causes: Causes of findings, as of :data:`shiftscope.findings.CAUSES`.
        sites: Which layers to treat.

    Returns:
        Candidate -> the causes it addresses, in the order of the causes.
    """
    found: dict[Candidate, tuple[str, ...]] = {}
    for cause in causes:
        for method, rescale in _REMEDIES.get(cause, ()):
            item = Candidate(method, rescale, False, _hashable(sites))
            found[item] = (*found.get(item, ()), cause)
    return found


def _hashable(sites: Sites) -> Sites:
    return sites if isinstance(sites, str) or callable(sites) else tuple(sites)


def _with_bias(model: nn.Module, sites: Sites) -> set[str]:
    chosen = choose(model, sites)
    kept = {p for p, m in chosen if is_linear_map(m) and m.bias is not None}
    if not kept:
        raise UsageError(
            "no chosen layer has a bias to absorb the mean", "Choose a constraint instead."
        )
    return kept


def _changed(model: nn.Module, entry: Rescaled, method: str) -> Change:
    layer = type(model.get_submodule(entry.site)).__name__
    return Change(entry.site, layer, method, "skip" if entry.reason else "change", entry.reason)
