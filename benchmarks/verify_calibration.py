"""Whether ``verify`` keeps its word: false alarms and missed controls over many seeds.

Every seed is one run of :func:`shiftscope.verify` at its default size. A run is a false alarm if
any true claim is refuted, which Holm's method bounds by alpha; a negative control or an erratum
as printed is missed where it is not refuted. Beside the verdicts the p-values of all comparisons
are counted: under a true claim the share below a level is that level, so that a broken standard
error shows long before it costs a false alarm.

    python benchmarks/verify_calibration.py --seeds 1000-1199 --out benchmarks/results

Every finished seed is a line of the ``--log`` file; a run that was interrupted goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from scipy import stats

import shiftscope as ss
from shiftscope.theory import CLAIMS, Verification

LEVELS = (0.05, 0.01, 0.001)
"""Levels at which p-values of true comparisons are counted."""

FAMILIES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Family-wise error rates at which the runs are judged anew."""

TRUE = ("claim", "corrected")
RANDOM = {(claim.id, case.name): case.random for claim in CLAIMS for case in claim.cases}


def summary(seed: int, seconds: float, outcomes: Sequence[Verification]) -> dict[str, Any]:
    """What one run leaves behind."""
    true = [o for o in outcomes if o.kind in TRUE]
    sampled = [o for o in true if RANDOM[o.claim, o.case]]
    values = [c.p for o in sampled for c in o.comparisons]
    return {
        "seed": seed,
        "cpu_seconds": round(seconds, 2),
        "cases": len(outcomes),
        "true_cases": len(true),
        "alarms": [_name(o) for o in true if o.verdict == "refuted"],
        "missed": [_name(o) for o in outcomes if o.kind not in TRUE and o.verdict == "holds"],
        "controls": {_name(o): round(abs(o.z), 1) for o in outcomes if o.kind not in TRUE},
        "comparisons": len(values),
        "below": [sum(p <= level for p in values) for level in LEVELS],
        "cases_below": [sum(_case_p(o) <= level for o in sampled) for level in LEVELS],
        "sampled_cases": len(sampled),
        "smallest_p_adjusted": min(o.p_adjusted for o in true),
    }


def _name(outcome: Verification) -> str:
    return f"{outcome.claim}: {outcome.case}"


def _case_p(outcome: Verification) -> float:
    """The case's own p-value, Bonferroni over its comparisons."""
    p: float = min(1.0, len(outcome.comparisons) * min(c.p for c in outcome.comparisons))
    return p


def run(seeds: Iterable[int], samples: int, log: Path) -> list[dict[str, Any]]:
    """All seeds, those of the log taken from it."""
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {row["seed"]: row for row in done}
    wanted = list(seeds)
    for seed in wanted:
        if seed in known:
            continue
        start = time.process_time()
        outcomes: Sequence[Verification] = ss.verify(samples=samples, seed=seed)
        known[seed] = summary(seed, time.process_time() - start, outcomes)
        with log.open("a") as file:
            file.write(json.dumps(known[seed]) + "\n")
    return [known[seed] for seed in wanted]


def result(rows: Sequence[dict[str, Any]], samples: int, alpha: float) -> dict[str, Any]:
    """The counts over all seeds."""
    alarms, total = sum(bool(r["alarms"]) for r in rows), len(rows)
    caught = {name: sum(name not in r["missed"] for r in rows) for name in rows[0]["controls"]}
    comparisons = sum(r["comparisons"] for r in rows)
    cases = sum(r["sampled_cases"] for r in rows)
    return {
        "seeds": [rows[0]["seed"], rows[-1]["seed"]],
        "runs": total,
        "samples": samples,
        "alpha": alpha,
        "cases_a_run": rows[0]["cases"],
        "runs_with_a_false_alarm": alarms,
        "share_upper_95": float(stats.beta.ppf(0.95, alarms + 1, total - alarms)),
        "chance_of_so_many_at_alpha": float(stats.binom.sf(alarms - 1, total, alpha)),
        "families": FAMILIES,
        "runs_with_an_alarm_at": [
            sum(r["smallest_p_adjusted"] <= level for r in rows) for level in FAMILIES
        ],
        "alarms_by_case": dict(Counter(name for r in rows for name in r["alarms"])),
        "controls": len(caught),
        "caught_least": min(caught.values()),
        "caught": caught,
        "smallest_z_of_a_control": {
            name: min(r["controls"][name] for r in rows) for name in caught
        },
        "levels": LEVELS,
        "share_of_comparisons_below": [
            sum(r["below"][k] for r in rows) / comparisons for k in range(len(LEVELS))
        ],
        "comparisons": comparisons,
        "share_of_cases_below": [
            sum(r["cases_below"][k] for r in rows) / cases for k in range(len(LEVELS))
        ],
        "cpu_seconds_a_run": sum(r["cpu_seconds"] for r in rows) / total,
    }


def markdown(found: dict[str, Any], about: dict[str, Any]) -> str:
    """The result on half a page."""
    low, high = found["seeds"]
    weakest = sorted(found["smallest_z_of_a_control"].items(), key=lambda item: item[1])[:5]
    lines = [
        "# Error control of `verify`",
        "",
        f"{found['runs']} runs (seeds {low} to {high}) of {found['cases_a_run']} cases at "
        f"{found['samples']} rows a case, {about['date'][:10]}, torch {about['torch']}, "
        f"{found['cpu_seconds_a_run']:.1f} s of processor time a run.",
        "",
        f"* Runs with a false alarm: **{found['runs_with_a_false_alarm']} of {found['runs']}**; "
        f"promised: at most {100 * found['alpha']:g} % (95 % upper bound of the share: "
        f"{100 * found['share_upper_95']:.1f} %; chance of so many or more at the promised rate: "
        f"{found['chance_of_so_many_at_alpha']:.2f}).",
        "* The same runs judged at other rates: "
        + ", ".join(
            f"{count} at {100 * level:g} % (promised {level * found['runs']:g})"
            for level, count in zip(found["families"], found["runs_with_an_alarm_at"], strict=True)
        )
        + ".",
        f"* Negative controls and errata as printed: {found['controls']}, each caught in at least "
        f"**{found['caught_least']} of {found['runs']}** runs.",
        "",
        "| level | share of comparisons with p below it | share of cases (Bonferroni within) |",
        "|---|---|---|",
    ]
    for level, single, case in zip(
        found["levels"],
        found["share_of_comparisons_below"],
        found["share_of_cases_below"],
        strict=True,
    ):
        lines.append(f"| {level:g} | {single:.4f} | {case:.4f} |")
    lines += ["", "Controls with the smallest deviation in any run, in standard errors:", ""]
    lines += [f"* {name}: {z:g}" for name, z in weakest]
    return "\n".join([*lines, "", "Made by `benchmarks/verify_calibration.py`.", ""])


def _seeds(text: str) -> range:
    low, _, high = text.partition("-")
    return range(int(low), int(high or low) + 1)


def main() -> None:
    """Run, and write the dated result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=_seeds, default=range(1000, 1200), help="such as 0-199")
    parser.add_argument("--samples", type=int, default=100_000, help="rows a case")
    parser.add_argument("--log", type=Path, default=Path("verify_calibration.jsonl"))
    parser.add_argument("--out", type=Path, help="folder for the dated JSON and its summary")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = result(run(options.seeds, options.samples, options.log), options.samples, 0.01)
    now = datetime.now(UTC)
    about = {
        "date": now.isoformat(timespec="seconds"),
        "shiftscope": ss.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
    }
    print(markdown(found, about))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"verify_calibration-{now:%Y-%m-%d}.json"
        path.write_text(json.dumps({"about": about, "result": found}, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(found, about))
        print(path)


if __name__ == "__main__":
    main()
