"""The work behind ``shiftscope fix``; imports torch, so only the command imports it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import shiftscope
from shiftscope.capture.copies import twin
from shiftscope.capture.visits import untouched
from shiftscope.errors import LoadError, UsageError
from shiftscope.fix.candidates import Candidate, candidate
from shiftscope.fix.constrain import release
from shiftscope.fix.prescribe import calibration, output_change, predict, prescribe
from shiftscope.io import load_checkpoint, load_model
from shiftscope.io.saving import save_state
from shiftscope.reporting.comparison import write_comparison
from shiftscope.reporting.comparison_rows import Outlook, comparison_sentence, comparison_table
from shiftscope.reporting.words import number

from . import measuring
from .prescriptions import lines, outlook, table
from .results import naming
from .terminal import say, show

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from shiftscope.comparison import Comparison
    from shiftscope.fix.prescription import Prescription
    from shiftscope.snapshot import Snapshot

__all__ = ["fix", "rehearse"]

_ROWS = 40
"""Sites the table on the terminal shows at most."""

Update = Callable[[str, int, int], None]


def rehearse(arguments: argparse.Namespace, update: Update) -> Callable[[], int]:
    """Predict, and change nothing.

    Args:
        arguments: The parsed command line.
        update: Told the stages.

    Returns:
        A function that prints the prescriptions and gives the exit code.
    """
    loaded = measuring.load(arguments, update)
    loaded.model.to(loaded.device)
    before = measuring.run(arguments, loaded, loaded.model, update)
    update("predicting", 0, 0)
    found = _prescriptions(arguments, loaded, before, update)
    return lambda: _tell_all(found)


def fix(arguments: argparse.Namespace, update: Update) -> Callable[[], int]:
    """Predict, apply, save, load what was saved, and measure it.

    Args:
        arguments: The parsed command line.
        update: Told the stages.

    Returns:
        A function that prints what came and gives the exit code.

    Raises:
        UsageError: No fix is called for, or the one asked for has nothing to change.
        LoadError: The weights are not all finite: no constraint mends that.
    """
    loaded = measuring.load(arguments, update)
    _refuse_broken(loaded.model)
    model = loaded.model.to(loaded.device)
    before = measuring.run(arguments, loaded, model, update)
    item = _chosen(arguments, loaded, before, update)
    update("applying the fix", 0, 0)
    batch = calibration(loaded.data, model)
    with untouched(model):
        fixed = _applied(item, model, batch)
    with naming("--out"):
        save_state(_as_stored(fixed.state_dict(), loaded.checkpoint.state), arguments.out)
    again = _read_back(arguments, loaded)
    after = measuring.run(arguments, loaded, again, update)
    comparison = shiftscope.compare(before, after)
    change = output_change(model, again.to(loaded.device), batch)
    prediction = outlook(item, after)
    if arguments.report is not None:
        update("writing the report", 0, 0)
        with naming("--report"):
            write_comparison(comparison, arguments.report, arguments.format, prediction)
    return lambda: _tell(arguments, item, comparison, prediction, change)


def _refuse_broken(model: Module) -> None:
    broken = [n for n, p in model.named_parameters() if not bool(p.isfinite().all())]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise LoadError(
            f"{broken[0]}{more} holds NaN or infinite values, which no fix mends",
            "go back to the last checkpoint whose weights are all finite",
        )


def _applied(item: Prescription, model: Any, batch: Any) -> Any:
    """A copy with the fix baked in: the original is still needed to compare outputs."""
    fixed: Any = twin(model)
    if item.fix is not None:
        item.fix.apply(fixed, batch)
    release(fixed)
    return fixed


def _as_stored(state: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In the precision of the file that was read; what was saved is measured, rounding included."""
    same = {name for name in state if name in stored and stored[name].is_floating_point()}
    return {n: t.to(stored[n].dtype) if n in same else t for n, t in state.items()}


def _read_back(arguments: argparse.Namespace, loaded: measuring.Loaded) -> Any:
    """The model as anybody would load it from the file just written: strictly."""
    spec = arguments.model or str(loaded.checkpoint.path)
    written = load_checkpoint(arguments.out)
    return load_model(spec, written, base=None, trust_pickle=arguments.trust_pickle).model


def _prescriptions(
    arguments: argparse.Namespace, loaded: measuring.Loaded, before: Snapshot, update: Update
) -> list[Prescription]:
    update("predicting", 0, 0)
    methods = None if arguments.method is None else [_candidate(arguments)]
    found: list[Prescription] = prescribe(
        loaded.model,
        loaded.data,
        loaded.loss,
        snapshot=before,
        methods=methods,
        sites=arguments.sites,
        batches=arguments.batches,
    )
    return found


def _candidate(arguments: argparse.Namespace) -> Candidate:
    return candidate(
        arguments.method,
        rescale=arguments.rescale,
        mean_preserving=arguments.mean_preserving,
        sites=arguments.sites,
    )


def _chosen(
    arguments: argparse.Namespace, loaded: measuring.Loaded, before: Snapshot, update: Update
) -> Prescription:
    """The fix asked for, or the best one for what was found."""
    if arguments.method is not None:
        update("predicting", 0, 0)
        asked = predict(
            loaded.model, loaded.data, _candidate(arguments), loaded.loss, snapshot=before
        )
        if not asked.sites:
            why = "; ".join(f"{site}: {reason}" for site, reason in asked.skipped[:3])
            raise UsageError(
                f"{asked.name} changes no layer ({why or 'none chosen'})",
                "see --dry-run for the fixes that do, and --sites",
            )
        return asked
    found = _prescriptions(arguments, loaded, before, update)
    for item in found:
        if item.fix is not None and item.helps:
            return item
    raise UsageError(
        "nothing was found that a change of the weights would mend",
        "name the fix to apply by --method, or see --dry-run",
    )


def _tell_all(found: list[Prescription]) -> int:
    if not found:
        say("No finding calls for a fix. Predict one nevertheless by --method.")
        return 0
    show(table(found))
    for item in found:
        for line in lines(item):
            say(line)
    return 0


def _tell(
    arguments: argparse.Namespace,
    item: Prescription,
    comparison: Comparison,
    prediction: Outlook,
    change: float,
) -> int:
    for line in lines(item):
        say(line)
    show(comparison_table(comparison, prediction, _ROWS))
    for name, before, predicted, after in prediction.lines:
        say(f"{name}: {number(before)} → {number(predicted)} predicted, {number(after)} measured")
    for name, (before, after) in comparison.scores.items():
        say(f"{name}: {number(before)} → {number(after)}")
    if math.isfinite(change):
        say(f"output: changed by {change:.2%} of its norm on the first batch")
    say(comparison_sentence(comparison))
    say(f"weights: {arguments.out}")
    if arguments.report is not None:
        say(f"report: {arguments.report}")
    return 0
