"""The frozen numbers of one window: the narrow waist between measuring and reporting.

A snapshot holds merged records and nothing else: no model, no tensor that requires grad, no hook.
Tables are derived from the records on demand; a saved snapshot (one ``.npz`` without pickles)
rebuilds every table, figure and report.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from shiftscope.absences import further_calls, joined_gaps, joined_notes
from shiftscope.columns import QUANTILES, Array, input_columns, neuron_columns, quantile_names
from shiftscope.errors import UsageError
from shiftscope.given import expect
from shiftscope.record import SiteRecord
from shiftscope.site_table import SITE_COLUMNS, site_row

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NEURON_COLUMNS", "Snapshot"]

NEURON_COLUMNS = (
    *("site", "neuron", "count", "z_mean", "z_mean_se", "z_var", "z_min", "z_max"),
    *quantile_names("z"),
    *("grad_z_count", "grad_z_mean", "grad_z_var", "weight_norm", "bias", "theta_ones"),
    *(
        "theta_mean",
        "shift_predicted",
        "shift_measured",
        "active_fraction",
        "saturated_fraction",
        "a_mean",
        "a_var",
    ),
    *quantile_names("a"),
    *("grad_a_count", "grad_a_mean", "grad_a_var", "z_below_resolution"),
)
"""Columns of ``snapshot.neurons``, in order."""

_OF_THE_LATEST = ("step", "overflow_steps", "schedule")
"""What a manifest says of the state of a run, not of a stretch of it."""

_APART = (
    "averages over several steps of several processes: how far the means of the processes lie "
    "apart in a step is not in the variances"
)
"""Each process knows the deviations from its own means only, once the weights have moved."""

_INPUT_COLUMNS = (
    *("site", "input", "count", "a_mean", "a_var"),
    *("grad_a_count", "grad_a_mean", "grad_a_var"),
)


@dataclass(frozen=True)
class Snapshot:
    """Everything measured in one window of steps.

    Attributes:
        records: Site name to record, in the order of execution.
        gaps: ``(module path, reason)`` for everything that was not measured.
        manifest: What produced the numbers: versions, seed, dtype, device, batches, rows, ...
        coverage: ``{"parameters": {"seen": ..., "total": ...}, "flops": ..., "activations": ...}``.
        inputs: Statistics of the data that went in.
        pictures: Small crops for the heat maps, ``site -> {"W": ..., "A": ..., "Z": ...}``.
        kept_quantiles: Quantiles of whole row samples, where those are kept in part or not at all.
    """

    records: Mapping[str, SiteRecord]
    gaps: tuple[tuple[str, str], ...] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
    coverage: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kept_quantiles: Mapping[str, Mapping[str, Array]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse what holds no records, such as a model."""
        expect("records", self.records, Mapping, remedy="ss.analyze, ss.watch and ss.load give one")

    def __repr__(self) -> str:
        """How many sites, samples and gaps: the numbers themselves fill pages."""
        counts = [(len(self.records), "site"), (len(self.gaps), "gap")]
        told = [f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count]
        samples = self.manifest.get("samples")
        told += [f"{samples} samples"] if samples else []
        return f"Snapshot({', '.join(told) or 'empty'})"

    @cached_property
    def quantiles(self) -> Mapping[str, Mapping[str, Array]]:
        """Quantiles ``[5, neurons]`` by site and stream: those saved, or from the samples."""
        known: dict[int, Array] = {}
        return {
            name: self.kept_quantiles.get(name) or _quantiles_of(record, known)
            for name, record in self.records.items()
        }

    @cached_property
    def sites(self) -> pd.DataFrame:
        """One row a site, columns :data:`~shiftscope.site_table.SITE_COLUMNS`."""
        return _frame([site_row(record) for record in self._ordered()], SITE_COLUMNS)

    @cached_property
    def neurons(self) -> pd.DataFrame:
        """One row a neuron, columns :data:`NEURON_COLUMNS`; angles in radians."""
        parts = [neuron_columns(r, self.quantiles[r.info.site]) for r in self._ordered()]
        return _stack(parts, NEURON_COLUMNS)

    @cached_property
    def input_neurons(self) -> pd.DataFrame:
        """One row for each input neuron (channel) of each linear site."""
        parts = [part for r in self._ordered() if (part := input_columns(r)) is not None]
        return _stack(parts, _INPUT_COLUMNS)

    def merge(self, other: Snapshot) -> Snapshot:
        """Combine with the snapshot of another shard or rank of the same model.

        Args:
            other: A snapshot whose sites of the same name have the same width.

        Returns:
            The snapshot of both; its numbers are those of the concatenated data. Where each is
            of several steps, they are no more than averages: a note at each site says so.

        Raises:
            UsageError: It is no snapshot, or a site has different widths in the two.
        """
        merged = self._put_together(other, SiteRecord.merge)
        steps = [of.manifest.get("steps", 1) for of in (self, other)]
        if max(steps) > 1:
            both = self.records.keys() & other.records.keys()
            merged = replace(merged, records=_noted(merged.records, both, _APART))
        if "steps" in merged.manifest:  # they were made side by side
            merged = replace(merged, manifest={**merged.manifest, "steps": max(steps)})
        return merged

    def join(self, later: Snapshot) -> Snapshot:
        """Average with the snapshot of a later stretch of the same training run.

        Between the two the weights moved. How far a mean moved along with them is no answer of a
        neuron to its inputs: variances are averages of the variances within each step.

        Args:
            later: A snapshot whose sites of the same name have the same width.

        Returns:
            Means and variances are the averages, weighted by rows; row samples, pictures and the
            state of the run are those of the later one.

        Raises:
            UsageError: It is no snapshot, or a site has different widths in the two.
        """
        joined = self._put_together(later, SiteRecord.join)
        latest = {n: later.manifest[n] for n in _OF_THE_LATEST if n in later.manifest}
        return replace(joined, manifest={**joined.manifest, **latest}, pictures=later.pictures)

    def _put_together(
        self, other: Snapshot, rule: Callable[[SiteRecord, SiteRecord], SiteRecord]
    ) -> Snapshot:
        expect("the other one", other, Snapshot)
        records = dict(self.records)
        for name, record in other.records.items():
            mine = records.get(name)
            records[name] = record if mine is None else rule(_fitting(mine, record), record)
        places = {place for r in records.values() for place in (r.info.site, r.info.module)}
        gaps, without_rows = joined_gaps((*self.gaps, *other.gaps), places)
        for name in without_rows.keys() & records.keys():
            records |= _noted(records, [name], further_calls(without_rows[name]))
        return replace(
            self,
            records=records,
            gaps=gaps,
            manifest=_merge_manifests(self.manifest, other.manifest),
            coverage=_merge_coverage(self.coverage, other.coverage),
            pictures={**other.pictures, **self.pictures},
            kept_quantiles={},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.npz`` file without pickles, whole or not at all.

        Args:
            path: The file to write.

        Raises:
            UsageError: The file cannot be written.
        """
        from shiftscope.archive import write_snapshot

        write_snapshot(self, path)

    def _ordered(self) -> list[SiteRecord]:
        return sorted(self.records.values(), key=lambda record: record.info.order)


def _quantiles_of(record: SiteRecord, known: dict[int, Array]) -> dict[str, Array]:
    """Quantiles of all streams; what an activation reads is what the layer before it wrote."""
    samples = {name: s.sample for name, s in record.streams.items() if s.sample is not None}
    for sample in samples.values():
        if id(sample.rows) not in known:
            known[id(sample.rows)] = sample.quantiles(QUANTILES)
    return {name: known[id(sample.rows)] for name, sample in samples.items()}


def _noted(
    records: Mapping[str, SiteRecord], names: Iterable[str], note: str
) -> dict[str, SiteRecord]:
    """The records, some of them with one more note."""
    noted = {n: replace(records[n], notes=joined_notes((*records[n].notes, note))) for n in names}
    return {**records, **noted}


def _fitting(mine: SiteRecord, theirs: SiteRecord) -> SiteRecord:
    """The first record, if the other one is of the same site."""
    if (mine.info.neurons, mine.info.kind) != (theirs.info.neurons, theirs.info.kind):
        raise UsageError(
            f"site {mine.info.site!r} has {mine.info.neurons} neurons in one snapshot and "
            f"{theirs.info.neurons} in the other",
            "merge snapshots of one model only; use compare for different ones",
        )
    return mine


def _merge_manifests(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**theirs, **mine}
    for mean, weight in (("loss", "samples"), ("accuracy", "accuracy_rows")):
        if mean in mine and mean in theirs:
            counts = mine.get(weight, 0), theirs.get(weight, 0)
            total = max(1, sum(counts))
            merged[mean] = (mine[mean] * counts[0] + theirs[mean] * counts[1]) / total
    for key in ("batches", "empty_batches", "samples", "steps", "accuracy_rows"):
        if key in mine or key in theirs:
            merged[key] = mine.get(key, 0) + theirs.get(key, 0)
    if "class_counts" in mine or "class_counts" in theirs:
        merged["class_counts"] = _sums(mine.get("class_counts", {}), theirs.get("class_counts", {}))
        largest = max(merged["class_counts"].values(), default=0)
        merged["chance_accuracy"] = largest / max(1, sum(merged["class_counts"].values()))
    return merged


def _merge_coverage(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**theirs, **mine}
    for key in ("parameters", "modules", "activations"):
        # Each knows what it saw, not which: what both saw together is at least the larger part.
        tables = [table for table in (mine.get(key), theirs.get(key)) if table]
        if len(tables) > 1:
            merged[key] = max(tables, key=lambda table: table.get("seen") or 0)
    one, other = mine.get("flops", {}), theirs.get("flops", {})
    if one.get("total") and other.get("total"):
        merged["flops"] = {key: one[key] + other[key] for key in ("seen", "total")}
    return merged


def _sums(mine: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, int]:
    return {key: mine.get(key, 0) + theirs.get(key, 0) for key in sorted({*mine, *theirs})}


def _frame(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(columns))


def _stack(parts: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    lengths = [len(part["site"]) for part in parts]
    data = {name: _column([part.get(name) for part in parts], lengths) for name in columns}
    return pd.DataFrame(data, columns=list(columns))


def _column(pieces: list[Any], lengths: list[int]) -> Any:
    if all(isinstance(piece, list) for piece in pieces):
        return [item for piece in pieces for item in piece]
    filled = [
        np.full(length, np.nan) if piece is None else np.asarray(piece)
        for piece, length in zip(pieces, lengths, strict=True)
    ]
    return np.concatenate(filled) if filled else np.zeros(0)
