"""What a public function is given by mistake is named, with what to give instead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import shiftscope as ss
from shiftscope.integrations import JsonLines, LiveTable, Outlet, feed
from shiftscope.integrations.watching import Watching
from shiftscope.reporting import write_verification

mpl.use("Agg")
torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
DATA = [(torch.randn(8, 4), torch.randint(2, (8,)))]
SNAPSHOT = ss.analyze(NET, DATA, cross_entropy)
TRACE = ss.trial(NET, DATA, cross_entropy, steps=2)
FINDINGS = ss.diagnose(TRACE)
LISTED = ss.watch(NET, every=1)
LISTED.detach()

WRONG: dict[str, Any] = {
    "None": None,
    "number": 3,
    "text": "nope",
    "path": Path("run.npz"),
    "module": NET,
    "class": nn.Linear,
    "weights": NET.state_dict(),
    "snapshot": SNAPSHOT,
    "trace": TRACE,
    "snapshot class": ss.Snapshot,
    "probe": LISTED,
    "generator": iter([3]),
}

NOT_MEASURED = tuple(set(WRONG) - {"snapshot", "trace"})
NOT_SNAPSHOT, NOT_TRACE = (*NOT_MEASURED, "trace"), (*NOT_MEASURED, "snapshot")
NOT_MODEL = tuple(set(WRONG) - {"module"})
NOT_LIMITS = tuple(set(WRONG) - {"None"})
NOT_LIST = ("None", "number", "text", "class", "snapshot", "module", "probe", "generator")


def _dry(made: Any) -> Any:
    return copy.deepcopy(made) if isinstance(made, nn.Module) else made


Case = tuple[Callable[[Any, Path], Any], tuple[str, ...]]
CASES: dict[str, Case] = {
    "report": (lambda it, out: ss.report(it, out), NOT_MEASURED),
    "report, out": (
        lambda it, _: ss.report(SNAPSHOT, it, ["json"]),
        tuple(set(WRONG) - {"text", "path"}),
    ),
    "report, formats": (lambda it, out: ss.report(SNAPSHOT, out, it), (*NOT_LIST, "trace")),
    "report, findings": (
        lambda it, out: ss.report(SNAPSHOT, out, ["json"], findings=it),
        tuple({*NOT_LIST, "trace"} - {"None"}),
    ),
    "diagnose": (lambda it, _: ss.diagnose(it), NOT_MEASURED),
    "diagnose, thresholds": (lambda it, _: ss.diagnose(TRACE, it), NOT_LIMITS),
    "verdict": (lambda it, _: ss.verdict(it, TRACE), (*NOT_LIST, "trace")),
    "verdict, measured": (lambda it, _: ss.verdict([], it), NOT_MEASURED),
    "compare": (lambda it, _: ss.compare(it, SNAPSHOT), NOT_MEASURED),
    "compare, after": (lambda it, _: ss.compare(SNAPSHOT, it), NOT_MEASURED),
    "compare, thresholds": (lambda it, _: ss.compare(TRACE, TRACE, it), NOT_LIMITS),
    "Thresholds": (lambda it, _: ss.Thresholds(it), tuple(set(WRONG) - {"number"})),
    "predict_depth": (lambda it, _: ss.predict_depth(it), NOT_SNAPSHOT),
    "prescribe": (lambda it, _: ss.prescribe(it, DATA), NOT_MODEL),
    "prescribe, snapshot": (
        lambda it, _: ss.prescribe(NET, DATA, snapshot=it),
        tuple(set(NOT_SNAPSHOT) - {"None"}),
    ),
    "prescribe, methods": (
        lambda it, _: ss.prescribe(NET, DATA, methods=it),
        ("number", "class", "snapshot", "text", "trace", "module"),
    ),
    "analyze": (lambda it, _: ss.analyze(it, DATA), NOT_MODEL),
    "trial": (lambda it, _: ss.trial(it, DATA, cross_entropy), NOT_MODEL),
    "watch": (lambda it, _: ss.watch(it), NOT_MODEL),
    "Probe": (lambda it, _: ss.Probe(it), NOT_MODEL),
    "BoundaryTracker": (lambda it, _: ss.BoundaryTracker(it), NOT_MODEL),
    "constrain": (lambda it, _: ss.constrain(it), NOT_MODEL),
    "constrain, batch": (
        lambda it, _: ss.constrain(_dry(NET), "lcw-data", batch=it, dry_run=True),
        ("None",),
    ),
    "release": (lambda it, _: ss.release(it), NOT_MODEL),
    "rescale_": (lambda it, _: ss.rescale_(it, DATA[0]), NOT_MODEL),
    "Snapshot": (lambda it, _: ss.Snapshot(it), tuple(set(WRONG) - {"weights"})),
    "Snapshot.merge": (lambda it, _: SNAPSHOT.merge(it), NOT_SNAPSHOT),
    "Snapshot.join": (lambda it, _: SNAPSHOT.join(it), NOT_SNAPSHOT),
    "Trace": (lambda it, _: ss.Trace(it), NOT_LIST),
    "Trace.of": (lambda it, _: ss.Trace.of(it), tuple(set(NOT_LIST) - {"snapshot"})),
    "Trace.append": (lambda it, _: ss.Trace().append(it), tuple(WRONG)),
    "Trace, limit": (lambda it, _: ss.Trace(limit=it), tuple(WRONG)),
    "verify": (
        lambda it, _: ss.verify(it, 1000),
        tuple({*NOT_LIST, "trace", "weights"} - {"number", "generator"}),
    ),
    "verify, samples": (lambda it, _: ss.verify(1, it), tuple(WRONG)),
    "verify, alpha": (lambda it, _: ss.verify(1, 1000, alpha=it), tuple(WRONG)),
    "verify, device": (
        lambda it, _: ss.verify(1, 1000, device=it),
        tuple(set(WRONG) - {"number"}),
    ),
    "feed": (lambda it, out: feed(it, JsonLines(out / "x")), NOT_LIST),
    "Outlet.drain": (lambda it, out: Outlet(JsonLines(out / "x")).drain(it), NOT_LIST),
    "Watching": (lambda it, _: Watching(it), tuple(set(WRONG) - {"None", "number"})),
    "Watching, out": (
        lambda it, _: Watching(out=it),
        tuple(set(WRONG) - {"None", "text", "path"}),
    ),
    "LiveTable": (lambda it, _: LiveTable(it), tuple(set(WRONG) - {"number"})),
    "write_verification": (lambda it, out: write_verification(it, out), (*NOT_LIST, "trace")),
    "load": (lambda it, _: ss.load(it), tuple(set(WRONG) - {"text", "path"})),
    "Trace.load": (lambda it, _: ss.Trace.load(it), tuple(set(WRONG) - {"text", "path"})),
    "JsonLines": (lambda it, _: JsonLines(it), tuple(set(WRONG) - {"text", "path"})),
    "constrain, method": (lambda it, _: ss.constrain(NET, it), tuple(WRONG)),
    "analyze, dtype": (lambda it, _: ss.analyze(NET, DATA, dtype=it), NOT_LIMITS),
    "analyze, device": (
        lambda it, _: ss.analyze(NET, DATA, device=it),
        tuple(set(NOT_LIMITS) - {"number"}),
    ),
    "draw.figures": (lambda it, _: ss.draw.figures(it), NOT_SNAPSHOT),
    "draw.depth_profile": (lambda it, _: ss.draw.depth_profile(it), NOT_SNAPSHOT),
    "draw.stripes": (lambda it, _: ss.draw.stripes(it), tuple(set(NOT_SNAPSHOT) - {"weights"})),
    "draw.evolution": (lambda it, _: ss.draw.evolution(it), NOT_TRACE),
    "draw.evolution_map": (lambda it, _: ss.draw.evolution_map(it), NOT_TRACE),
    "draw.quantile_course": (lambda it, _: ss.draw.quantile_course(it), NOT_TRACE),
    "draw.run_curves": (lambda it, _: ss.draw.run_curves(it), NOT_TRACE),
    "draw.run_figures": (lambda it, _: ss.draw.run_figures(it), NOT_TRACE),
    "draw.site_curves": (lambda it, _: ss.draw.site_curves(it), NOT_TRACE),
    "draw.comparison_profile": (lambda it, _: ss.draw.comparison_profile(it), tuple(WRONG)),
    "draw.claim_figures": (lambda it, _: ss.draw.claim_figures(it), NOT_LIST),
    "draw.claim_figure": (lambda it, _: ss.draw.claim_figure(it), NOT_LIST),
    "draw.claim_scores": (lambda it, _: ss.draw.claim_scores(it), NOT_LIST),
    "draw.claim_estimates": (lambda it, _: ss.draw.claim_estimates(it), NOT_LIST),
    "draw.boundary_moves": (lambda it, _: ss.draw.boundary_moves(it), NOT_LIST),
    "draw.to_png_bytes": (lambda it, _: ss.draw.to_png_bytes(it), tuple(WRONG)),
}


@pytest.mark.parametrize("name", CASES)
def test_another_kind_of_thing_is_refused_in_words(name: str, tmp_path: Path) -> None:
    use, wrong = CASES[name]
    for kind in sorted(wrong):
        given = iter([3]) if kind == "generator" else WRONG[kind]
        with pytest.raises((ss.UsageError, ss.LoadError)) as caught:
            use(given, tmp_path / "out")
        for line in (caught.value.reason, caught.value.remedy):
            assert line, kind
            assert "\n" not in line, kind
        assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("use", "reason", "remedy"),
    [
        (lambda: ss.report(3, "out"), "measured is 3, expected a snapshot or a trace", "ss.load"),
        (lambda: ss.report("run.npz", "out"), "measured is 'run.npz'", "read the file first"),
        (lambda: ss.report(Path("run.npz"), "out"), "is a PosixPath", "read the file first"),
        (lambda: ss.diagnose(NET), "measured is a Sequential", r"ss\.analyze\(model, data\)"),
        (lambda: ss.diagnose(nn.Linear), "measured is the class Linear", "give what ss.analyze"),
        (lambda: ss.diagnose(LISTED), "measured is a Probe", r"probe\.snapshot\(\)"),
        (lambda: ss.predict_depth(TRACE), "snapshot is a Trace", r"trace\.last"),
        (lambda: SNAPSHOT.merge(TRACE), "is a Trace, expected a snapshot", r"trace\.last"),
        (lambda: ss.draw.evolution(SNAPSHOT), "is a Snapshot, expected a trace", r"Trace\.of"),
        (lambda: ss.analyze(nn.Linear, DATA), "is the class Linear", "the module itself, built"),
        (lambda: ss.watch(NET.state_dict()), "is an OrderedDict", "load_state_dict"),
        (lambda: ss.Trace.of([SNAPSHOT, 3]), r"windows\[1\] is 3", r"probe\.trace"),
        (lambda: ss.Thresholds(dead="x"), "dead is 'x', expected a number", "leave it at 0.5"),
    ],
)
def test_the_way_from_what_was_given_is_told(use: Any, reason: str, remedy: str) -> None:
    with pytest.raises(ss.UsageError, match=reason) as caught:
        use()
    assert caught.match(remedy)


def test_what_is_meant_goes_through(tmp_path: Path) -> None:
    assert ss.verdict(FINDINGS, TRACE) == ss.verdict(iter(FINDINGS), TRACE)
    told = ss.report(TRACE, tmp_path, ["json"], findings=(f for f in FINDINGS)).findings
    assert told == tuple(FINDINGS)
    assert len(ss.Trace.of([SNAPSHOT, *TRACE])) == len(TRACE) + 1
    assert ss.Thresholds(errors=3).errors == 3
