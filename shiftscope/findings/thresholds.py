"""Every threshold of a diagnosis, with its name, its default and where the default comes from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from numbers import Real

from shiftscope.errors import UsageError
from shiftscope.given import shown

__all__ = ["Thresholds"]

_RUNS = (
    "153 training runs of sigmoid networks of depth 2 to 50 on scikit-learn's digits: all 90 that "
    "trained had at most 3.3 decades between the last and the first hidden layer after 20 steps"
)
_SHIFT = (
    "Kutsuna 2019, Definition 2 and Section 4.1: above one half, more of the pooled variance of z "
    "lies between neurons than between samples"
)
_RELU_LCW = (
    "Kutsuna 2019, Proposition 6: zero-sum weights under ReLU gain pi/(pi-1) = 1.467 a layer, "
    "3.2 decades over 20 layers, at which such networks diverge"
)
_OWN = "convention of this tool: "


def _value(default: float, source: str) -> float:
    return field(default=default, metadata={"source": source})


@dataclass(frozen=True)
class Thresholds:
    """Limits at which a number becomes a finding.

    Attributes:
        shift_share: Share of the pooled variance of z that lies between neurons.
        total_decay: Decades by which the gradient shrinks from the last to the first hidden layer.
        decay_watch: The same, from where it is worth watching.
        total_growth: Decades by which the gradient grows towards the input.
        growth_watch: The same, from where it is worth watching.
        collapse: Decades by which the variance within neurons falls over the depth.
        collapse_watch: The same, from where it is worth watching.
        weight_scale: Decades by which the pooled variance of z changes over the depth.
        weight_scale_watch: The same, from where it is worth watching.
        saturation: Share of rows at which a bounded activation is flat.
        saturation_watch: The same, from where it is worth watching.
        dead: Share of the units of a site that were never active.
        dead_watch: The same, from where it is worth watching.
        dead_bound: Largest P(active) that the rows may leave open for a serious verdict.
        resolution: Share of neurons whose variance is lost in rounding.
        initial_spread: Spread of the squared row norms over that of a uniform initialisation.
        trained_spread: Relative spread of the squared row norms over that of a random draw.
        lcw_index: Share of the shift that zero-sum weights must be able to remove to be advised.
        backward_excess: Ratio phi_bw/phi_fw from which zero-sum weights alone harm at depth.
        errors: Standard errors by which a number must exceed its threshold.

    Raises:
        UsageError: One of them is no number.
    """

    shift_share: float = _value(0.5, _SHIFT)
    total_decay: float = _value(3.3, _RUNS)
    decay_watch: float = _value(2.0, _OWN + "a gradient variance of one hundredth")
    total_growth: float = _value(3.0, _RELU_LCW)
    growth_watch: float = _value(2.0, _OWN + "a gradient variance a hundred times larger")
    collapse: float = _value(3.3, _RUNS + " (forward and backward gains are nearly equal)")
    collapse_watch: float = _value(2.0, _OWN + "a hundredth of the variance is left")
    weight_scale: float = _value(4.0, _OWN + "standard deviations of z a hundredfold apart")
    weight_scale_watch: float = _value(2.0, _OWN + "standard deviations of z tenfold apart")
    saturation: float = _value(0.9, _OWN + "nine rows in ten give a slope of nearly zero")
    saturation_watch: float = _value(0.5, "Glorot & Bengio 2010, Section 3: saturated layers")
    dead: float = _value(0.5, _OWN + "half of the units carry nothing")
    dead_watch: float = _value(0.25, _OWN + "a quarter of the units carry nothing")
    dead_bound: float = _value(0.1, "rule of three: no event in N rows leaves P < 3/N open")
    resolution: float = _value(0.1, _OWN + "a tenth of the neurons of a site")
    initial_spread: float = _value(
        2.0, "variance of ||w||^2 for w uniform in ±1/sqrt(m) is 4/(45 m); ratio 1 when untouched"
    )
    trained_spread: float = _value(
        10.0, "variance of ||w||^2 for Gaussian rows is 2/m of its squared mean; ratio 1 at random"
    )
    lcw_index: float = _value(0.5, "Kutsuna 2019, Proposition 2: cos^2 of the angle of mu to 1")
    backward_excess: float = _value(
        1.2, "Kutsuna 2019, Proposition 6 generalised: ReLU 1.467, GELU 1.319, SiLU 1.212"
    )
    errors: float = _value(2.0, "two standard errors, about 95 % confidence")

    def __post_init__(self) -> None:
        """Refuse limits that nothing can be compared with."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, Real) or value != value:
                raise UsageError(
                    f"the threshold {item.name} is {shown(value)}, expected a number",
                    f"leave it at {item.default}, or give another number",
                )

    def source(self, name: str) -> str:
        """Where the default of a threshold comes from."""
        given = {item.name: str(item.metadata["source"]) for item in fields(self)}
        return given[name]
