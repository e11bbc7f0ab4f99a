"""``report.json``: strict, of the documented layout, bounded, rebuilt from the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import HOSTILE, hostile, sick

import shiftscope as ss
from shiftscope.files import strict_json
from shiftscope.findings import diagnose
from shiftscope.reporting import REPORT_SCHEMA
from shiftscope.reporting.document import document
from shiftscope.snapshot import Snapshot

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": int | float,
    "integer": int,
    "boolean": bool,
    "null": type(None),
}


def check(value: Any, schema: dict[str, Any], path: str = "$") -> None:
    """The part of JSON Schema that the schema of reports uses."""
    if "const" in schema:
        assert value == schema["const"], path
    if "enum" in schema:
        assert value in schema["enum"], path
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds:
        assert any(isinstance(value, TYPES[kind]) for kind in kinds), f"{path}: {value!r}"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        assert set(schema.get("required", ())) <= set(value), path
        for key, item in value.items():
            inner = properties.get(key, schema.get("additionalProperties", {}))
            check(item, inner, f"{path}.{key}")
    if isinstance(value, list) and "items" in schema:
        for place, item in enumerate(value):
            check(item, schema["items"], f"{path}[{place}]")


def parsed(snapshot: Snapshot, **options: Any) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = strict_json(document(snapshot, diagnose(snapshot), **options))
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("snapshot", [sick(), hostile(), Snapshot(records={})])
def test_every_report_satisfies_the_schema(snapshot: Snapshot) -> None:
    check(parsed(snapshot), REPORT_SCHEMA)


def test_the_schema_refuses_what_is_wrong() -> None:
    good = parsed(sick())
    for broken in (
        {**good, "schema_version": 2},
        {key: item for key, item in good.items() if key != "verdict"},
        {**good, "findings": [{**good["findings"][0], "severity": "grave"}]},
        {**good, "gaps": [{"module": "a"}]},
    ):
        with pytest.raises(AssertionError):
            check(broken, REPORT_SCHEMA)


def test_not_measured_is_null() -> None:
    sites = parsed(sick())["sites"]
    linear = next(row for row in sites if row["kind"] == "linear")
    assert linear["phi_fw"] is None
    assert linear["eta"] > 0


def test_numbers_are_those_of_the_frames() -> None:
    snapshot, content = sick(), parsed(sick())
    for name in ("z_mean", "z_q50", "theta_ones", "grad_z_var"):
        column = np.array(content["neurons"][name], dtype=float)
        np.testing.assert_allclose(column, snapshot.neurons[name], rtol=1e-8)
    share = [row["shift_share"] for row in content["sites"]]
    np.testing.assert_array_equal(share, snapshot.sites["shift_share"])


def test_names_stay_what_they_are() -> None:
    sites = {row["site"] for row in parsed(hostile())["sites"]}
    assert set(HOSTILE) <= sites


def test_large_models_keep_the_neurons_of_their_worst_sites_and_say_so() -> None:
    snapshot = sick()
    content = parsed(snapshot, neurons=100)
    kept = set(content["neurons"]["site"])
    left = content["neurons_left_out"]
    assert len(content["neurons"]["site"]) <= 100
    assert diagnose(snapshot)[0].sites[0] in kept
    assert kept.isdisjoint(left["sites"])
    assert kept | set(left["sites"]) == set(snapshot.records)
    assert "snapshot.npz" in left["reason"]


def test_rebuilt_from_the_saved_snapshot_it_is_the_same(tmp_path: Path) -> None:
    snapshot = replace(hostile(), pictures={})
    snapshot.save(tmp_path / "s.npz")
    again = ss.load(tmp_path / "s.npz")
    assert parsed(again) == parsed(snapshot)
