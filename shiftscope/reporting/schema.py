"""The layout of ``report.json``, as a JSON Schema (draft 2020-12).

``schema_version`` grows by one when a key changes its meaning or goes away; new keys may come
without notice. Numbers that were not measured are ``null``. Angles are radians, variances are
population variances (ddof 0).
"""

from __future__ import annotations

from typing import Any

from shiftscope.findings import CAUSES, SEVERITIES
from shiftscope.site_table import SITE_COLUMNS
from shiftscope.snapshot import NEURON_COLUMNS

__all__ = ["REPORT_SCHEMA", "SCHEMA_VERSION"]

SCHEMA_VERSION = 1

_NUMBER = {"type": ["number", "null"]}
_TEXT = {"type": "string"}
_CELL = {"type": ["number", "string", "boolean", "null"]}


def _object(description: str, required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "properties": {**required, **optional},
        "required": list(required),
    }


def _list(description: str, items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "description": description, "items": items}


_EVIDENCE = _object(
    "One number behind a finding.",
    {"value": {"type": ["number", "string", "null"]}},
    se={**_NUMBER, "description": "standard error"},
    low={**_NUMBER, "description": "lower confidence bound"},
    high={**_NUMBER, "description": "upper confidence bound"},
    rows={"type": "integer", "description": "rows (independent samples) behind the number"},
    site=_TEXT,
    unit=_TEXT,
)

_FINDING = _object(
    "One cause, wherever it was seen.",
    {
        "cause": {"enum": list(CAUSES)},
        "severity": {"enum": list(SEVERITIES)},
        "title": _TEXT,
        "sites": _list("Sites concerned, worst first.", _TEXT),
        "evidence": {"type": "object", "additionalProperties": _EVIDENCE},
        "threshold": _object("The threshold crossed.", {"name": _TEXT, "value": _NUMBER}),
        "source": {**_TEXT, "description": "where the threshold comes from"},
        "explanation": _TEXT,
        "advice": _TEXT,
        "follows_from": {**_TEXT, "description": "cause this one is a consequence of, or empty"},
    },
)

_PREMISE = _object(
    "V(z_i) over σ²‖w_i‖² at one site.",
    {
        "site": _TEXT,
        "ratio": {**_NUMBER, "description": "mean over neurons; 1 under the premise"},
        "cv": {**_NUMBER, "description": "coefficient of variation; 0 under the premise"},
        "noise": {**_NUMBER, "description": "the cv that sampling alone gives"},
        "premise_holds": {"type": "boolean"},
        "neurons": {"type": "integer"},
        "ratio_backward": {**_NUMBER, "description": "measured over predicted V(∇a)"},
        "note": _TEXT,
    },
)

_LAYER = _object(
    "One layer: a linear site with the activation behind it.",
    {
        "site": _TEXT,
        "chain": {"type": "integer"},
        **{
            f"{name}{kind}": _NUMBER
            for name in ("shift_share", "gradient_gain", "log10_grad_z_var")
            for kind in ("_predicted", "")
        },
    },
)

REPORT_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "shiftscope report",
    **_object(
        "Everything a report shows.",
        {
            "schema_version": {"const": SCHEMA_VERSION},
            "manifest": {"type": "object", "description": "What produced the numbers."},
            "verdict": _object(
                "The worst finding in one sentence.",
                {"severity": {"enum": list(SEVERITIES)}, "sentence": _TEXT},
            ),
            "sites": _list(
                "One object a site, in order of execution.",
                _object("A row of the site table.", dict.fromkeys(SITE_COLUMNS, _CELL)),
            ),
            "neurons": _object(
                "Column name to values; equal lengths, one entry a neuron.",
                {name: _list("One entry a neuron.", _CELL) for name in NEURON_COLUMNS},
            ),
            "neurons_left_out": _object(
                "Sites whose neurons are not in the columns, and why; snapshot.npz has all.",
                {"sites": _list("Site names.", _TEXT), "reason": _TEXT},
            ),
            "findings": _list("Worst first.", _FINDING),
            "gaps": _list(
                "What was not measured.",
                _object("A module and why.", {"module": _TEXT, "reason": _TEXT}),
            ),
            "coverage": {
                "type": "object",
                "additionalProperties": {"type": ["object", "number", "string", "null"]},
                "description": "parameters, flops, activations: seen and total.",
            },
            "inputs": {"type": "object", "description": "Statistics of the data that went in."},
            "premises": _list(
                "How far each linear site is from the premise of Propositions 4 and 5.", _PREMISE
            ),
            "prediction": _object(
                "The depth profile that mean-field theory predicts of these layers.",
                {
                    "layers": _list("In order of execution; predicted beside measured.", _LAYER),
                    "cuts": _list(
                        "Sites to which the chain of layers cannot be continued, and why.",
                        _object("A cut.", {"site": _TEXT, "reason": _TEXT}),
                    ),
                    "chi_predicted": {**_NUMBER, "description": "median gradient gain per layer"},
                    "chi": {**_NUMBER, "description": "the same, measured"},
                    "trainable_depth": {
                        **_NUMBER,
                        "description": "layers after which gradients changed by 3.3 decades; null "
                        "where the layers are not one chain, or gradients keep their size",
                    },
                },
            ),
        },
        missed={
            "type": "object",
            "additionalProperties": _TEXT,
            "description": "Of a run: phase to why no site was kept of its latest recorded steps.",
        },
        windows=_list(
            "Of a run: one object a window, in the order of steps; the rest is of the last one.",
            _object(
                "Steps, phase, and headline numbers as far as they are known.",
                {"first": {"type": "integer"}, "last": {"type": "integer"}, "phase": _TEXT},
            ),
        ),
    ),
}
"""What every ``report.json`` of :data:`SCHEMA_VERSION` satisfies."""
