"""A snapshot as the rules read it: sites in order of execution, and profiles over the depth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from shiftscope.findings.profile import Profile, fit_profile

if TYPE_CHECKING:
    import pandas as pd

    from shiftscope.snapshot import Snapshot

__all__ = ["Reading", "Row", "known", "positions", "samples_of", "share_error"]

Row = Mapping[str, Any]

_NOT_ELEMENTWISE = frozenset({"softmax", "log_softmax", "softmin", "gumbel_softmax", "glu"})
_RESOLVED = 0.5
"""A site enters a profile when at least this share of its neurons is above float resolution."""


@dataclass(frozen=True)
class Reading:
    """The sites of a snapshot, sorted by what a rule may conclude from them.

    Attributes:
        snapshot: What was measured.
    """

    snapshot: Snapshot

    @cached_property
    def rows(self) -> list[Row]:
        """Every site as a mapping, in order of execution."""
        frame = self.snapshot.sites
        rows = [{str(name): cell for name, cell in row.items()} for row in frame.to_dict("records")]
        return sorted(rows, key=lambda row: row["order"])

    @cached_property
    def linear(self) -> list[Row]:
        """All linear sites."""
        return [row for row in self.rows if row["kind"] == "linear"]

    @cached_property
    def hidden(self) -> list[Row]:
        """Linear sites without the head (the last one): its width and loss are the task's."""
        return self.linear[:-1]

    @cached_property
    def activations(self) -> list[Row]:
        """Elementwise activation sites before the head; those behind it shape the output."""
        last = max((row["order"] for row in self.linear), default=math.inf)
        chosen = [row for row in self.rows if row["kind"] == "activation"]
        return [row for row in chosen if row["order"] < last and self._elementwise(row)]

    @cached_property
    def judged(self) -> list[Row]:
        """Where shift counts: what enters the nonlinearities; without any, the linear sites."""
        return self.activations or self.hidden

    @cached_property
    def gradient(self) -> Profile | None:
        """Decades by which the gradient shrinks towards the input (+) over the hidden layers.

        The size of a gradient is V(∇z) summed over neurons and positions, so that neither a
        change of width nor a stride passes for a gain: the backward gain of a rectangular layer
        is to be divided by m_out/m_in before it means anything.
        """
        measured = [row for row in self.hidden if known(row.get("grad_z_var"))]
        logs = [_log_energy(row) for row in measured]
        return fit_profile(measured, logs, rising=True)

    @cached_property
    def within(self) -> Profile | None:
        """Decades by which the variance within neurons falls (+) over the depth."""
        return self._forward(lambda row: row["within_var"])

    @cached_property
    def pooled(self) -> Profile | None:
        """Decades by which the pooled variance of z falls (+), or grows (-), over the depth."""
        return self._forward(lambda row: row["within_var"] + row["between_var"])

    @cached_property
    def predicted_gradient(self) -> Profile | None:
        """Decay predicted from the forward pass: every layer multiplies by eta times phi_bw.

        Only for plain chains (each activation reads the z of the linear site before it); behind a
        normalisation or a residual sum the product is not the gain.
        """
        chain = self._chain()
        if len(chain) < 2:
            return None
        above = [linear["eta"] for linear, _ in chain[1:]]
        slopes = [activation["phi_bw_theory"] for _, activation in chain[:-1]]
        gains = [eta * slope for eta, slope in zip(above, slopes, strict=True)]
        if not all(gain > 0 for gain in gains):
            return None
        logs = [sum(math.log10(gain) for gain in gains[layer:]) for layer in range(len(chain))]
        return fit_profile([linear for linear, _ in chain], logs, rising=True)

    @cached_property
    def silent(self) -> list[Row]:
        """Hidden linear sites whose gradient arrived as exactly zero while others' did not."""
        some = any(row.get("grad_z_var", 0) > 0 for row in self.linear)
        return [row for row in self.hidden if some and row.get("grad_z_var") == 0]

    def neurons_of(self, site: str) -> pd.DataFrame:
        """The neurons of one site."""
        return self._neurons[site] if site in self._neurons else self.snapshot.neurons.iloc[:0]

    @property
    def head(self) -> Row | None:
        """The last linear site."""
        return self.linear[-1] if self.linear else None

    @cached_property
    def _neurons(self) -> dict[str, pd.DataFrame]:
        groups = self.snapshot.neurons.groupby("site", sort=False)
        return {str(site): frame for site, frame in groups}

    def _elementwise(self, row: Row) -> bool:
        record = getattr(self.snapshot, "records", {}).get(row["site"])
        if record is not None:
            return bool(record.info.elementwise)
        return row["op"] not in _NOT_ELEMENTWISE

    def _forward(self, size: Any) -> Profile | None:
        usable = [row for row in self.judged if _resolved(row) and size(row) > 0]
        return fit_profile(usable, [math.log10(size(row)) for row in usable], rising=False)

    def _chain(self) -> list[tuple[Row, Row]]:
        pairs = list(zip(self.hidden, self.activations, strict=False))
        if len(self.hidden) != len(self.activations):
            return []
        plain = all(a["order"] > h["order"] and _same_z(h, a) for h, a in pairs)
        complete = all(known(h.get("eta")) and known(a.get("phi_bw_theory")) for h, a in pairs)
        return pairs if plain and complete else []


def known(value: Any) -> bool:
    """Whether a cell holds a finite number."""
    return isinstance(value, float | int) and math.isfinite(value)


def samples_of(row: Row) -> int:
    """Independent samples behind the rows of a site (its rows, where samples are not known)."""
    samples = row.get("samples", math.nan)
    if known(samples) and samples > 0:
        return int(samples)
    return int(row["count"]) if known(row.get("count")) else 0


def positions(row: Row) -> float:
    """Rows per sample: positions of a convolution, tokens of a sequence, repeated calls."""
    samples = samples_of(row)
    return max(row["count"] / samples, 1.0) if samples else 1.0


def share_error(row: Row) -> float:
    """Standard error of the shift share: the measured one, else a worst-case bound.

    The bound is the delta method for s = B/(B + W) with all neurons perfectly correlated, so that
    averaging over neurons helps nothing: relative errors sqrt(2/N) of W and 2 sqrt(W/(B N)) of B.
    """
    measured = row.get("shift_share_se", math.nan)
    if known(measured):
        return float(measured)
    share, samples = row["shift_share"], samples_of(row)
    if not samples or not 0 < share < 1:
        return 0.0 if samples else math.inf
    spread = math.sqrt(2 / samples) + 2 * math.sqrt((1 - share) / (share * samples))
    return float(share * (1 - share) * spread)


def _log_energy(row: Row) -> float:
    energy = row["grad_z_var"] * row["neurons"] * positions(row)
    return math.log10(energy) if energy > 0 else math.nan


def _resolved(row: Row) -> bool:
    lost = row.get("resolution_lost", 0.0)
    return known(row.get("within_var")) and not (known(lost) and lost >= _RESOLVED)


def _same_z(linear: Row, activation: Row) -> bool:
    def near(name: str) -> bool:
        mine, theirs = linear[name], activation[name]
        return known(mine) and known(theirs) and math.isclose(mine, theirs, rel_tol=1e-4)

    return linear["neurons"] == activation["neurons"] and near("within_var") and near("z_std")
