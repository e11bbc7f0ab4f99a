"""The figures of a run: which ones, with the words that stand beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from shiftscope.draw.course import Course
from shiftscope.draw.curves import evaluation, has_loss, quantile_course, run_curves
from shiftscope.draw.depth_time import evolution
from shiftscope.draw.named_figure import NamedFigure, sentence
from shiftscope.draw.names import plain_names
from shiftscope.draw.quantiles import BANDS

if TYPE_CHECKING:
    from shiftscope.findings import Finding
    from shiftscope.trace import Trace

__all__ = ["run_figures"]

_SHOWN = 3


def run_figures(trace: Trace, findings: Sequence[Finding] = ()) -> list[NamedFigure]:
    """Draw the figures of a run.

    Args:
        trace: The run.
        findings: What was concluded, worst first; the worst site's quantiles are among those drawn.

    Returns:
        Maps over depth and step, curves over the steps, and quantile bands where row samples were
        kept.

    Raises:
        UsageError: The run has no finished window.
    """
    course = Course.of(trace)
    drawn = [_maps(trace, course), _curves(trace, course), _bands(trace, course, findings)]
    return [figure for figure in drawn if figure is not None]


def _maps(trace: Trace, course: Course) -> NamedFigure:
    share = course.matrix("shift_share", course.judged())
    return NamedFigure(
        "evolution",
        "Through depth and time",
        sentence(
            "Sites from the input (top) to the output (bottom), steps to the right; a window "
            "reaches to the start of the next one. Colours of gains are white at 1, where a layer "
            "passes variance on as it is; grey was not measured, or lies below the resolution of "
            "floats.",
            _remark(course, bad=bool(course.bad.any())),
        ),
        f"Heat maps of the sites {_span(course)}. Mean shift share of {share.shape[0]} "
        f"{_ends(share)}.",
        evolution(trace),
    )


def _curves(trace: Trace, course: Course) -> NamedFigure:
    loss = course.manifest("loss") if has_loss(course) else None
    beside = evaluation(trace)
    bad = bool(course.bad.any() or (beside is not None and beside.bad.any()))
    return NamedFigure(
        "curves",
        "Along the steps",
        sentence(
            "One" if loss is None else "The loss of each window, and one",
            "line a site, light at the input and dark at the output, through the middle of each "
            "window. Lines of the gradient that fan out are a gradient that vanishes or explodes.",
            "Dashed: evaluation, of the sites that are named." if beside else "",
            _remark(course, bad=bad),
        ),
        sentence(f"Curves {_span(course)}.", "" if loss is None else f"Loss {_ends(loss[None])}."),
        run_curves(trace),
    )


def _bands(trace: Trace, course: Course, findings: Sequence[Finding]) -> NamedFigure | None:
    have = [site for site in course.judged() if _sampled(course, site)]
    if not have:
        return None
    blamed = [site for finding in findings for site in finding.sites if site in set(have)]
    middle = blamed[0] if blamed and blamed[0] not in (have[0], have[-1]) else have[len(have) // 2]
    names = list(dict.fromkeys([have[0], middle, have[-1]]))[:_SHOWN]
    return NamedFigure(
        "quantile-course",
        "How preactivations move",
        sentence(
            f"All neurons of a site pooled: {BANDS}. All panels have one scale.",
            _remark(course, bad=bool(course.bad_at(names).any())),
        ),
        f"Quantiles of z at {', '.join(plain_names(names))} {_span(course)}.",
        quantile_course(trace, names),
    )


def _sampled(course: Course, site: str) -> bool:
    return any("z" in snapshot.quantiles.get(site, {}) for snapshot in course.snapshots)


def _remark(course: Course, *, bad: bool) -> str:
    """What is special about the windows: that there is but one, or values that are not finite."""
    alone = "There is one window; how things move takes two." if len(course.steps) == 1 else ""
    return sentence(alone, "Hatched: some values there were NaN or infinite." if bad else "")


def _span(course: Course) -> str:
    first, last = course.steps[0], course.lasts[-1]
    return f"at step {first}" if first == last else f"over steps {first} to {last}"


def _ends(values: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> str:
    """The mean over sites in the first and the last window."""
    with np.errstate(invalid="ignore"):
        ends = [v[np.isfinite(v)].mean() if np.isfinite(v).any() else np.nan for v in values.T]
    first, last = float(ends[0]), float(ends[-1])
    if not (np.isfinite(first) and np.isfinite(last)):
        return "not measured"
    if len(ends) == 1:
        return f"{first:.3g}"
    return f"{first:.3g} at the first and {last:.3g} at the last of them"
