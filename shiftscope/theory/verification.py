"""Monte Carlo evidence for the claims of the paper, with family-wise error control.

Every case yields comparisons of predicted with estimated numbers. A case's p-value is Bonferroni's
over its comparisons; Holm's step-down method over all cases of a run then bounds by ``alpha`` the
probability that *any* true claim is called refuted. Results depend on seed, sample size, device
kind and case only, not on which other cases are run beside.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy import stats

from shiftscope.errors import UsageError
from shiftscope.given import each, expect, positive, shown, whole
from shiftscope.theory.claims import Bench, Case, Claim, Comparison, Kind, Verdict, worst
from shiftscope.theory.errata import ERRATA
from shiftscope.theory.propositions import PROPOSITIONS
from shiftscope.theory.shift_laws import SHIFT_LAWS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CLAIMS", "Verification", "verifications_frame", "verify"]

CLAIMS: tuple[Claim, ...] = (*PROPOSITIONS, *SHIFT_LAWS, *ERRATA)
"""Everything that :func:`verify` can test."""

SAMPLES = 100_000
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of one case of one claim.

    Attributes:
        claim: Identifier of the claim.
        case: Name of the case.
        title: The claim in a few words.
        statement: The claim in symbols.
        source: Paper and number.
        assumptions: What was drawn.
        kind: ``claim``, ``negative control``, ``as printed`` or ``corrected``.
        quantity: What the next four numbers belong to: the comparison with the largest |z|.
        predicted: Its predicted value.
        estimate: Its estimate.
        standard_error: Its standard error; 0 for algebraic identities.
        z: Its deviation in standard errors.
        p_adjusted: The case's p-value after Bonferroni within the case and Holm over all cases.
        comparisons: All comparisons of the case.
        rows: Rows drawn.
        seed: Seed of the run.
        alpha: Family-wise error rate of the run.
        critical: |z| that Bonferroni's bound over the whole run would refute; Holm's is no larger.
        verdict: ``holds`` or ``refuted``.
        expected: What the verdict should be.
    """

    claim: str
    case: str
    title: str
    statement: str
    source: str
    assumptions: str
    kind: Kind
    quantity: str
    predicted: float
    estimate: float
    standard_error: float
    z: float
    p_adjusted: float
    comparisons: tuple[Comparison, ...]
    rows: int
    seed: int
    alpha: float
    critical: float
    verdict: Verdict
    expected: Verdict

    @property
    def passed(self) -> bool:
        """Whether the verdict is the expected one."""
        return self.verdict == self.expected

    def to_row(self) -> dict[str, Any]:
        """The fields as plain values, with ``comparisons`` as their number, and ``passed``."""
        row = asdict(self)
        return {**row, "comparisons": len(self.comparisons), "passed": self.passed}


def verify(
    propositions: Iterable[int | str] = range(1, 7),
    samples: int = SAMPLES,
    seed: int = 0,
    *,
    alpha: float = 0.01,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[Verification]:
    """Test the claims of the paper, their negative controls and the paper's errata.

    The global random state is not touched. Memory does not grow with ``samples``.

    Args:
        propositions: Numbers of propositions, whose layer-wide consequences and errata come along,
            or identifiers of single claims.
        samples: Rows a case.
        seed: Seed of all random numbers.
        alpha: Bound on the probability that any true claim is called refuted.
        device: ``cpu`` or ``cuda``.
        progress: Called with rows done, rows in total and the case's name after every chunk.

    Returns:
        One verification a case, in the order of the claims.

    Raises:
        UsageError: An unknown proposition or claim, a sample size below 1000, a bad alpha, a
            device that is not there.
    """
    claims = _chosen(propositions)
    samples = whole("samples", samples, 1000, "Use the default 100000.")
    if not positive("alpha", alpha, "Use the default 0.01.") < 1:
        raise UsageError(f"alpha must lie between 0 and 1, got {alpha}", "Use the default 0.01.")
    expect("device", device, str, torch.device, int, remedy="Use 'cpu' or 'cuda'.")
    jobs = [(claim, case) for claim in claims for case in claim.cases]
    report = _Reporter(progress, samples * sum(case.random for _, case in jobs))
    outcomes = [_run(claim, case, samples, seed, device, report) for claim, case in jobs]
    adjusted = _holm([p for _, p, _ in outcomes])
    return [
        _verification(job, outcome, p, seed, alpha, len(jobs))
        for job, outcome, p in zip(jobs, outcomes, adjusted, strict=True)
    ]


def _chosen(wanted: Iterable[int | str]) -> list[Claim]:
    """The claims asked for, each once, in their fixed order."""
    ids = {c.id for c in CLAIMS}
    known = f"Use numbers 1 to 6 or: {', '.join(sorted(ids))}."
    asked = each("propositions", wanted, int, str, remedy=known)
    for item in asked:
        if item not in ids and item not in range(1, 7):
            raise UsageError(f"no proposition or claim is called {item!r}", known)
    return [c for c in CLAIMS if c.id in asked or any(n in asked for n in c.propositions)]


class _Reporter:
    """Adds up rows for the progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def tick(self, rows: int, label: str) -> None:
        self.done += rows
        if self.progress is not None:
            self.progress(self.done, self.total, label)


def _run(
    claim: Claim, case: Case, samples: int, seed: int, device: str, report: _Reporter
) -> tuple[list[Comparison], float, int]:
    """Measure one case: its comparisons, its p-value, the rows drawn."""
    generator = _generator(device)
    generator.manual_seed(_seed_of(f"{claim.id}/{case.name}/{seed}"))
    chunk = 1 << 15 if torch.device(device).type == "cpu" else 1 << 20
    label = f"{claim.id}: {case.name}"
    bench = Bench(generator, samples, chunk, lambda rows: report.tick(rows, label))
    with torch.no_grad():
        comparisons = case.measure(bench)
    if case.random:  # replicates need not use up the rows to the last one
        report.tick(samples - bench.done, label)
    p = min(1.0, len(comparisons) * min(c.p for c in comparisons))
    return comparisons, p, bench.done


def _generator(device: str) -> torch.Generator:
    try:
        return torch.Generator(device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {shown(device)} cannot be used: {reason}", "Use 'cpu'.") from None


def _seed_of(text: str) -> int:
    """A seed of 63 bits that differs from case to case."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = sorted(range(len(values)), key=values.__getitem__)
    out, running = [1.0] * len(values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(values) - rank) * values[index]))
        out[index] = running
    return out


def _verification(
    job: tuple[Claim, Case],
    outcome: tuple[list[Comparison], float, int],
    p: float,
    seed: int,
    alpha: float,
    cases: int,
) -> Verification:
    (claim, case), (comparisons, _, rows) = job, outcome
    top = worst(comparisons)
    finite = all(math.isfinite(c.estimate) for c in comparisons)
    verdict: Verdict = "refuted" if p <= alpha or not finite else "holds"
    critical = float(stats.norm.isf(alpha / (2 * cases * len(comparisons))))
    return Verification(
        claim.id, case.name, claim.title, claim.statement, claim.source, case.assumptions,
        case.kind, top.quantity, top.predicted, top.estimate, top.standard_error, top.z, p,
        tuple(comparisons), rows, seed, alpha, critical, verdict, case.expected,
    )  # fmt: skip


def verifications_frame(verifications: Iterable[Verification]) -> pd.DataFrame:
    """The verifications as a table, one row a case.

    Args:
        verifications: What :func:`verify` returned.

    Returns:
        A frame with the columns of :meth:`Verification.to_row`.
    """
    import pandas as pd

    return pd.DataFrame([v.to_row() for v in verifications])
