"""What was recorded at one site: its description, its tallies and the facts of its weights.

A record is frozen. What the same weights gave (batches, micro-batches, ranks) is combined exactly
by :meth:`SiteRecord.merge`; stretches of a training run, between which the weights moved, are
averaged by :meth:`SiteRecord.join`. Everything a frame or a report shows is derived from records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from shiftscope.absences import joined_notes
from shiftscope.tally import Counts, Extrema, Moments, RowSample

__all__ = ["STREAMS", "SiteInfo", "SiteRecord", "Stream", "WeightFacts"]

Array = npt.NDArray[np.float64]

STREAMS = ("a", "z", "grad_z", "grad_a", "grad_z_paired")
"""The four tensors of a site, in the order of one forward and one backward pass; and, where some
calls had inputs that need no gradient, the part of grad_z that has a grad_a to be compared with."""

_TALLIES: dict[str, Any] = {
    "moments": Moments,
    "extrema": Extrema,
    "counts": Counts,
    "sample": RowSample,
}


@dataclass(frozen=True)
class Stream:
    """The tallies of one stream; those that were not asked for are None.

    Attributes:
        moments: Count, mean and variance of each neuron.
        extrema: Smallest and largest value of each neuron.
        counts: Rows that are active, saturated, not finite.
        sample: A seeded sample of rows, for quantiles and pictures.
    """

    moments: Moments
    extrema: Extrema | None = None
    counts: Counts | None = None
    sample: RowSample | None = None

    def merge(self, other: Stream) -> Stream:
        """Combine with the same stream of another batch or rank."""
        merged = {
            name: _merge_optional(getattr(self, name), getattr(other, name)) for name in _TALLIES
        }
        return Stream(**merged)

    def join(self, later: Stream) -> Stream:
        """Average with a later stretch of training, whose row sample is kept."""
        merged = replace(self, sample=None).merge(replace(later, sample=None))
        return replace(merged, moments=self.moments.join(later.moments), sample=later.sample)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All tallies as named arrays (``moments.mean``, ``sample.rows``, ...)."""
        out: dict[str, npt.NDArray[Any]] = {}
        for name in _TALLIES:
            tally = getattr(self, name)
            if tally is not None:
                out |= {f"{name}.{key}": value for key, value in tally.to_arrays().items()}
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Stream:
        """The inverse of :meth:`to_arrays`."""
        parts: dict[str, Any] = {}
        for name, tally in _TALLIES.items():
            own = {k.split(".", 1)[1]: v for k, v in arrays.items() if k.startswith(f"{name}.")}
            parts[name] = tally.from_arrays(own) if own else None
        return cls(**parts)


@dataclass(frozen=True)
class WeightFacts:
    """What the weights of a linear site say, averaged over the rows they were used for.

    Over a window in which the weights stay the same (an analysis, or the ranks of one step) every
    average equals the value itself, bit for bit.

    Attributes:
        rows: Rows behind the averages (0: weights only, no data).
        norm2: Squared norms ``||w_i||^2`` of the rows of W (unrolled kernels), ``[out]``.
        row_sum: Sums ``w_i . 1``, ``[out]``.
        theta_ones: Angles between ``w_i`` and 1 in radians, ``[out]``; NaN for a zero row.
        bias: Biases, ``[out]``; NaN where the site has none.
        shift: Predicted shifts ``w_i . mu`` (Kutsuna 2019, Proposition 2), ``[out]``.
        mu: Mean input, unrolled for convolutions, ``[groups, fan_in]``; empty when unmeasured.
        group: Index of the group of each output channel, ``[out]``.
        xi: Mean squared column norm, with taps lost at borders left out for convolutions.
        eta_map: Mean squared row norm, with taps lost at borders left out.
        z_mean: Means of z over the very rows of ``mu``, ``[out]``, where the averages of z span
            more steps than that (a window of a training run); empty elsewhere.
    """

    rows: int
    norm2: Array
    row_sum: Array
    theta_ones: Array
    bias: Array
    shift: Array
    mu: Array
    group: npt.NDArray[np.int64]
    xi: float
    eta_map: float
    z_mean: Array = field(default_factory=lambda: np.zeros(0))

    def merge(self, other: WeightFacts) -> WeightFacts:
        """Row-weighted average; the mean input and the shifts merge exactly as means do."""
        total = self.rows + other.rows
        if not self.rows or not other.rows:
            return self if self.rows >= other.rows else other
        share = other.rows / total

        def mix(mine: Any, theirs: Any) -> Any:
            return mine + (theirs - mine) * share

        means = ["norm2", "row_sum", "theta_ones", "bias", "shift", "mu", "xi", "eta_map"]
        if self.z_mean.shape == other.z_mean.shape:
            means.append("z_mean")
        mixed = {name: mix(getattr(self, name), getattr(other, name)) for name in means}
        return replace(self, rows=total, **mixed)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All fields as arrays."""
        return {item.name: np.asarray(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> WeightFacts:
        """The inverse of :meth:`to_arrays`."""
        values: dict[str, Any] = dict(arrays)
        values["rows"] = int(values["rows"])
        values["xi"], values["eta_map"] = float(values["xi"]), float(values["eta_map"])
        return cls(**values)


@dataclass(frozen=True)
class SiteInfo:
    """The fixed description of a site.

    Attributes:
        site: Unique name: module path, ``:op`` for a function called inside it, ``:op.2`` for its
            second place within one forward pass, ``~2`` for a second form of what is met there.
        kind: ``"linear"`` or ``"activation"``.
        op: The operation: ``linear``, ``conv2d``, ``relu``, ...
        module: Path of the module inside which the op ran ("" is the model itself).
        neurons: Width of z: features, or channels of a convolution.
        fan_in: Inputs of one neuron (0 for activations).
        params: Parameters of an activation (``negative_slope``, ...), for the theory.
        elementwise: False for softmax, GLU and their kin: no gain theory, no per-neuron pairing.
        order: Position in the order of first execution.
    """

    site: str
    kind: str
    op: str
    module: str
    neurons: int
    fan_in: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    elementwise: bool = True
    order: int = 0


@dataclass(frozen=True)
class SiteRecord:
    """Everything recorded at one site in one window.

    Attributes:
        info: The fixed description.
        calls: How often the op ran.
        samples: Samples (batch items) behind the rows; rows within a sample are not independent.
        streams: Tallies by stream name.
        weights: Facts of the weights, for linear sites.
        notes: Sentences a reader must know about these numbers.
        paired: Whether the gradients of z and a come from the same calls (else no gain).
        kept: Site columns of the whole row sample, where a saved file holds a part of it.
        lost_since: Stream -> first recorded step at which values of it were not finite, in a run.
    """

    info: SiteInfo
    calls: int = 0
    samples: int = 0
    streams: Mapping[str, Stream] = field(default_factory=dict)
    weights: WeightFacts | None = None
    notes: tuple[str, ...] = ()
    paired: bool = True
    kept: Mapping[str, float] = field(default_factory=dict)
    lost_since: Mapping[str, int] = field(default_factory=dict)

    def merge(self, other: SiteRecord) -> SiteRecord:
        """Combine two records of the same site and the same weights."""
        return self._put_together(other, Stream.merge)

    def join(self, later: SiteRecord) -> SiteRecord:
        """Average with a later stretch of training of the same site."""
        return self._put_together(later, Stream.join)

    def _put_together(
        self, other: SiteRecord, rule: Callable[[Stream, Stream], Stream]
    ) -> SiteRecord:
        mine, theirs = dict(self.streams), dict(other.streams)
        if not self._all_paired or not other._all_paired:
            mine, theirs = self._with_pairs(), other._with_pairs()
        streams = {
            name: mine.get(name) or theirs[name] for name in STREAMS if name in mine | theirs
        }
        both = {
            name: rule(mine[name], theirs[name]) for name in streams if name in mine.keys() & theirs
        }
        return replace(
            self,
            calls=self.calls + other.calls,
            samples=self.samples + other.samples,
            streams=streams | both,
            weights=_merge_optional(self.weights, other.weights),
            notes=joined_notes((*self.notes, *other.notes)),
            paired=self.paired and other.paired,
            kept={},
            lost_since=_earliest(self.lost_since, other.lost_since),
        )

    @property
    def _all_paired(self) -> bool:
        """Whether every gradient of z has one of a to be compared with."""
        return "grad_a" in self.streams and "grad_z_paired" not in self.streams

    def _with_pairs(self) -> dict[str, Stream]:
        """The streams, with the part of grad_z that has a grad_a named as such."""
        streams = dict(self.streams)
        if self._all_paired and "grad_z" in streams:
            streams["grad_z_paired"] = streams["grad_z"]
        return streams

    def meta(self) -> dict[str, Any]:
        """The parts that are no arrays, fit for JSON."""
        info = asdict(self.info) | {"params": dict(self.info.params)}
        return {
            "info": info,
            "calls": self.calls,
            "samples": self.samples,
            "notes": list(self.notes),
            "paired": self.paired,
            "kept": dict(self.kept),
            "lost_since": dict(self.lost_since),
        }

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays, named ``stream/tally.field`` and ``weights/field``."""
        out: dict[str, npt.NDArray[Any]] = {}
        for name, stream in self.streams.items():
            out |= {f"{name}/{key}": value for key, value in stream.to_arrays().items()}
        if self.weights is not None:
            out |= {f"weights/{key}": value for key, value in self.weights.to_arrays().items()}
        return out

    @classmethod
    def from_parts(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> SiteRecord:
        """The inverse of :meth:`meta` and :meth:`to_arrays`."""
        by_part: dict[str, dict[str, Any]] = {}
        for key, value in arrays.items():
            part, name = key.split("/", 1)
            by_part.setdefault(part, {})[name] = value
        weights = by_part.pop("weights", None)
        return cls(
            info=SiteInfo(**meta["info"]),
            calls=int(meta["calls"]),
            samples=int(meta["samples"]),
            streams={
                name: Stream.from_arrays(by_part[name]) for name in STREAMS if name in by_part
            },
            weights=WeightFacts.from_arrays(weights) if weights else None,
            notes=tuple(meta["notes"]),
            paired=bool(meta["paired"]),
            kept={key: float("nan") if v is None else v for key, v in meta["kept"].items()},
            lost_since={key: int(step) for key, step in meta.get("lost_since", {}).items()},
        )


def _earliest(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: min(d[name] for d in (one, other) if name in d) for name in one.keys() | other}


def _merge_optional(mine: Any, theirs: Any) -> Any:
    if mine is None or theirs is None:
        return theirs if mine is None else mine
    return mine.merge(theirs)
