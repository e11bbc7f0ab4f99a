"""The mean-field depth profile of a measured network, to be drawn over what was measured.

Predicted from the weights of every layer (their norms, whether rows sum to zero, the spread of the
biases), the moments of what enters every activation and the mean of the network's input; not from
the measured shift shares or gradients. Premises: rows in random directions, neurons uncorrelated.
Training breaks both, so that the distance from this profile is itself a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shiftscope.columns import Array, as_float, mean_variance
from shiftscope.given import expect
from shiftscope.prediction.chain import Layer, chains, layers_of
from shiftscope.snapshot import Snapshot
from shiftscope.theory import SiteProfile, profile_for_sites, trainable_depth
from shiftscope.theory.catalogue import find
from shiftscope.theory.naming import canonical

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DepthPrediction", "predict_depth"]

_ZERO_SUM = 1e-4
"""Largest cosine between a row and the ones at which its layer counts as zero-sum."""


@dataclass(frozen=True)
class DepthPrediction:
    """Predicted beside measured, one entry per layer; NaN where there is nothing to say.

    The level of the gradients comes from the loss, not from the layers: each chain's prediction
    starts from its last layer's measured gradient.
    """

    sites: tuple[str, ...]
    """The linear site of every layer, in order of execution."""
    chain: tuple[int, ...]
    """Number of the chain a layer belongs to, from 0."""
    shift_share: Array
    """Predicted shift share of z where it enters the activation."""
    log10_grad_var: Array
    """Predicted log10 of Var(∇z) there."""
    gradient_gain: Array
    """Predicted Var(∇z) of a layer over that of the next; NaN at the end of a chain."""
    measured_share: Array
    """Measured shift share."""
    measured_log10_grad_var: Array
    """Measured log10 of Var(∇z)."""
    measured_gain: Array
    """Measured Var(∇z) of a layer over that of the next in its chain."""
    cuts: tuple[tuple[str, str], ...]
    """``(site, reason)`` for every layer that a chain cannot be continued to."""

    @property
    def predicted_chi(self) -> float:
        """Median of the predicted gradient gains; NaN where no chain has two layers."""
        return _median(self.gradient_gain)

    @property
    def measured_chi(self) -> float:
        """Median of the measured gradient gains."""
        return _median(self.measured_gain)

    @property
    def trainable_depth(self) -> float:
        """Layers after which gradients have changed by more than networks that train do.

        NaN where the layers are not one chain: skip connections carry gradients past layers.
        """
        chi = self.predicted_chi
        return trainable_depth(chi) if chi > 0 and not self.cuts else math.nan

    def frame(self) -> pd.DataFrame:
        """One row a layer, with the fields as columns."""
        import pandas as pd

        return pd.DataFrame(
            {
                "site": list(self.sites),
                "chain": list(self.chain),
                "shift_share_predicted": self.shift_share,
                "shift_share": self.measured_share,
                "gradient_gain_predicted": self.gradient_gain,
                "gradient_gain": self.measured_gain,
                "log10_grad_z_var_predicted": self.log10_grad_var,
                "log10_grad_z_var": self.measured_log10_grad_var,
            }
        )


def predict_depth(snapshot: Snapshot) -> DepthPrediction:
    """Predict shift share and gradient variance of every layer of a measured network.

    Args:
        snapshot: What was measured; with labels or a loss, or there are no gradients to compare.

    Returns:
        Prediction and measurement, cut where the layers do not form a chain (residual sums,
        pooling, attention, ...): behind a cut the prediction starts again from the measured input.

    Raises:
        UsageError: It is no snapshot.

    Source: depth maps of Poole et al. (2016) and Schoenholz et al. (2017), with the gains of
    Kutsuna (2019), Propositions 4 to 6.
    """
    expect("snapshot", snapshot, Snapshot)
    layers = layers_of(snapshot)
    parts, cuts = chains(layers)
    profiles = [_profile([layers[k] for k in part]) for part in parts]
    shares, logs = _measured(snapshot, layers)
    number = [n for n, part in enumerate(parts) for _ in part]
    steps = logs[:-1] - logs[1:]
    inside = np.equal(number[:-1], number[1:])
    gains = np.append(np.where(inside, 10.0**steps, math.nan), math.nan) if layers else logs
    anchored = [
        _anchored(p.log10_grad_var, logs[part]) for p, part in zip(profiles, parts, strict=True)
    ]
    return DepthPrediction(
        tuple(layer.site for layer in layers),
        tuple(number),
        _joined([p.shift_share for p in profiles]),
        _joined(anchored),
        _joined([p.gradient_gain for p in profiles]),
        shares,
        logs,
        gains,
        tuple(cuts),
    )


def _profile(layers: Sequence[Layer]) -> SiteProfile:
    """The prediction for one chain, from its input on."""
    zero_sum = [_zero_sum(layer) for layer in layers]
    share, power = _entering(layers[0], zero_sum[0])
    weights = [layer.linear.weights for layer in layers]
    moments = np.array([_z_moments(layer) for layer in layers])
    return profile_for_sites(
        [_function(layer) for layer in layers],
        [float(w.norm2.mean()) if w is not None else math.nan for w in weights],
        [w.xi if w is not None else math.nan for w in weights],
        moments[:, 0],
        moments[:, 1],
        constrained=zero_sum,
        normalized=[layer.normalized for layer in layers],
        bias_var=[_bias_variance(layer) for layer in layers],
        c0=share,
        input_power=power,
    )


def _function(layer: Layer) -> Any:
    """The activation for the theory; the last layer of a chain may have one it does not know."""
    record = layer.activation
    if record is None:
        return "identity"
    named = canonical(record.info.op, **record.info.params) if record.info.elementwise else None
    return find(named.name, named.parameters) if named is not None else "identity"


def _z_moments(layer: Layer) -> tuple[float, float]:
    """Mean and pooled standard deviation of what enters the activation."""
    moments = layer.entrance.streams["z"].moments
    mean, total = as_float(moments.mean), float(moments.pooled().total)
    known = mean[np.isfinite(mean)]
    return float(known.mean()) if known.size else math.nan, math.sqrt(
        total
    ) if total > 0 else math.nan


def _zero_sum(layer: Layer) -> bool:
    weights = layer.linear.weights
    if weights is None:
        return False
    cosine = np.abs(np.cos(weights.theta_ones[weights.norm2 > 0]))
    return bool(cosine.max(initial=0.0) < _ZERO_SUM)


def _bias_variance(layer: Layer) -> float:
    weights = layer.linear.weights
    return float(np.nan_to_num(weights.bias).var()) if weights is not None else 0.0


def _entering(layer: Layer, zero_sum: bool) -> tuple[float, float]:
    """Shift share of a chain's first z, and the mean square of its inputs as the weights see it."""
    weights = layer.linear.weights
    if weights is None or not weights.mu.size:
        return 0.0, 1.0
    squares = np.square(weights.mu).mean(axis=1)
    if zero_sum:
        squares = squares - np.square(weights.mu.mean(axis=1))
    size = float(weights.norm2.mean())
    # taps that read a zero padding add no variance
    within = mean_variance(layer.linear.streams["a"]) * weights.eta_map / size
    # the mean of few samples scatters: its square is too large by the variance of that mean
    between = max(float(squares.mean()) - within / max(layer.linear.samples, 1), 0.0)
    total = size * (between + within) + _bias_variance(layer)
    return (1.0 - size * within / total if total > 0 else 0.0), between + within


def _measured(snapshot: Snapshot, layers: Sequence[Layer]) -> tuple[Array, Array]:
    """Measured shift shares and log10 of gradient variances where z enters the activations."""
    table = snapshot.sites.set_index("site")
    names = [layer.entrance.info.site for layer in layers]
    columns = (table.loc[names, c].to_numpy() for c in ("shift_share", "log10_grad_z_var"))
    share, logs = (np.asarray(column, dtype=np.float64) for column in columns)
    return share, logs


def _anchored(line: Array, measured: Array) -> Array:
    """The prediction moved to meet the last measured layer; NaN where none is."""
    known = np.flatnonzero(np.isfinite(line) & np.isfinite(measured))
    if not known.size:
        return np.full(len(line), math.nan)
    moved: Array = line + (measured[known[-1]] - line[known[-1]])
    return moved


def _joined(pieces: Sequence[Array]) -> Array:
    joined: Array = np.concatenate([np.empty(0), *pieces])
    return joined


def _median(gains: Array) -> float:
    known = gains[np.isfinite(gains) & (gains > 0)]
    return float(np.median(known)) if known.size else math.nan
