"""What a fix is expected to do: site by site, to the gradient, and with which reservations."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from shiftscope.fix.candidates import Candidate

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AGREEMENT", "GradientEffect", "Prescription", "SiteEffect"]

AGREEMENT = 0.10
"""Relative distance of a predicted gain per layer from the trial's beyond which it is not used."""


@dataclass(frozen=True)
class SiteEffect:
    """The effect at one site.

    Attributes:
        site: Its name.
        kind: ``linear`` or ``activation``.
        before: Measured shift share of z.
        after: Predicted shift share with the fix at all chosen layers; NaN where unknown.
        alone: Shift share if only this layer were changed, from its own measured inputs; NaN for
            activations and where the rows of its inputs were not sampled.
        removed: Share of the variance of ``w_i·μ̂`` over the neurons that vanishes at this layer
            for its measured mean input; biases stay. NaN for activations.
        p_gamma_index: cos² of the angle between the measured mean input and the ones vector.
    """

    site: str
    kind: str
    before: float
    after: float
    alone: float = math.nan
    removed: float = math.nan
    p_gamma_index: float = math.nan


@dataclass(frozen=True)
class GradientEffect:
    """The effect on the gradient over the hidden layers.

    Gains are factors of the summed variance of ∇z from one layer to the one before it, towards the
    input, as a geometric mean over the depth; above 1 gradients grow towards the input.

    Attributes:
        layers: Hidden linear layers.
        before: Measured gain per layer; without a loss the theory's; NaN where that is unknown.
        theory: Gain after the fix from weights and moments of z alone, ``φ_bw ‖w‖²`` (Kutsuna
            2019, Propositions 5 and 6, with the slopes at the predicted moments); NaN where layers
            do not follow each other as a plain chain.
        trial: Gain measured on a copy with the fix; NaN without a loss.
        mean_field: χ of the activation for random weights: the gain at infinite width.
    """

    layers: int
    before: float
    theory: float
    trial: float
    mean_field: float = math.nan

    @property
    def after(self) -> float:
        """The gain to expect: the theory's where its premises hold here, else the trial's."""
        return self.theory if self.premises_hold else self.trial

    @property
    def premises_hold(self) -> bool:
        """Whether the theory applies: a plain chain, and no contradiction by the trial."""
        if not math.isfinite(self.theory) or self.theory <= 0:
            return False
        if not math.isfinite(self.trial):
            return True
        return abs(self.theory / self.trial - 1) <= AGREEMENT if self.trial > 0 else False

    @property
    def decades_before(self) -> float:
        """log10 of the gradient variance at the first over that at the last hidden layer."""
        return _decades(self.before, self.layers)

    @property
    def decades_after(self) -> float:
        """The same, after the fix."""
        return _decades(self.after, self.layers)


@dataclass(frozen=True)
class Prescription:
    """One fix with its predicted effect.

    Attributes:
        fix: What would be done; ``fix.apply(model, batch)`` does it.
        causes: The findings it addresses.
        sites: Layers that would change.
        effects: One entry a site of the network.
        gradient: Effect on the gradient over the depth.
        score: Decades the gradient is off balance plus the mean shift share at the nonlinearities,
            before and after: smaller is better.
        output_change: ‖y' − y‖/‖y‖ of the network's output over the batch; NaN if it has none.
        gram_condition: Condition of the G-matrix of the last hidden layer, before and after, where
            asked for.
        assumptions: What the prediction rests on, and where it does not hold.
        warnings: Harm that theory or the trial foresees, and why it may gain nothing.
        skipped: ``(layer, reason)`` of chosen layers that would be left alone.
        advice: For fixes that change the architecture: what to do, in words; no prediction then
            but the mean-field gain.
    """

    fix: Candidate | None
    causes: tuple[str, ...]
    sites: tuple[str, ...]
    effects: tuple[SiteEffect, ...]
    gradient: GradientEffect
    score: tuple[float, float] = (math.nan, math.nan)
    output_change: float = math.nan
    gram_condition: tuple[float, float] | None = None
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = field(default=())
    advice: str = ""

    @property
    def name(self) -> str:
        """The fix in a few words."""
        return self.fix.name if self.fix is not None else self.advice.split(":")[0]

    @property
    def code(self) -> str:
        """What to write to apply it; empty for advice."""
        return self.fix.code if self.fix is not None else ""

    @property
    def helps(self) -> bool:
        """Whether the score improves."""
        return self.score[1] < self.score[0]

    @property
    def shares(self) -> tuple[float, float]:
        """Mean shift share at the nonlinearities (else all sites), before and after."""
        judged = [e for e in self.effects if e.kind == "activation"] or list(self.effects)
        known = [e for e in judged if math.isfinite(e.before) and math.isfinite(e.after)]
        if not known:
            return math.nan, math.nan
        return fmean(e.before for e in known), fmean(e.after for e in known)

    def __str__(self) -> str:
        """The fix, its effect and what to know about it, a few lines for people."""
        gradient, shares = self.gradient, self.shares
        told = [self.name]
        if math.isfinite(shares[1]):
            told[0] += f": shift share {shares[0]:.3g} → {shares[1]:.3g}"
        if math.isfinite(gradient.before) and math.isfinite(gradient.after):
            told[0] += (
                f"; gradient gain per layer {gradient.before:.3g} → {gradient.after:.3g} "
                f"({gradient.decades_before:+.2g} → {gradient.decades_after:+.2g} decades over "
                f"{gradient.layers} layers)"
            )
        told += [self.advice] if self.advice else []
        told += [f"  warning: {text}" for text in self.warnings]
        return "\n".join([*told, *(f"  >>> {line}" for line in self.code.splitlines())])

    @property
    def frame(self) -> pd.DataFrame:
        """The effects as a table, one row a site."""
        import pandas as pd

        return pd.DataFrame([asdict(effect) for effect in self.effects])

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        gradient = asdict(self.gradient) | {
            "after": self.gradient.after,
            "premises_hold": self.gradient.premises_hold,
            "decades_before": self.gradient.decades_before,
            "decades_after": self.gradient.decades_after,
        }
        named = ("causes", "sites", "score", "output_change", "gram_condition", "assumptions")
        rest = {name: getattr(self, name) for name in (*named, "warnings", "skipped", "advice")}
        effects = [asdict(effect) for effect in self.effects]
        head = {"fix": self.name, "code": self.code, "helps": self.helps}
        return {**head, **rest, "gradient": gradient, "effects": effects}


def _decades(gain: float, layers: int) -> float:
    known = math.isfinite(gain) and gain > 0
    return math.log10(gain) * (layers - 1) if known else math.nan
