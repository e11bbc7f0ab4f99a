"""A claim of a paper as data: what is assumed, what is predicted, how it is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Generator

__all__ = ["Bench", "Case", "Claim", "Comparison", "Kind", "Verdict"]

Verdict = Literal["holds", "refuted"]
Kind = Literal["claim", "negative control", "as printed", "corrected"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One predicted number beside its estimate.

    Attributes:
        quantity: What is compared, e.g. ``E z[3]``.
        predicted: The prediction.
        estimate: The Monte Carlo estimate, or the other side of an identity.
        standard_error: Its estimated standard error; 0 for algebraic identities.
        z: Deviation in standard errors. Variances are compared on the log scale, where their
            estimates are closer to normal. An identity has 0, or infinity where it fails.
        p: Two-sided p-value of z.
    """

    quantity: str
    predicted: float
    estimate: float
    standard_error: float
    z: float
    p: float


@dataclass(slots=True)
class Bench:
    """Where a case is measured: random numbers, size, and somebody to tell about progress.

    Args:
        generator: The only source of random numbers; its device is where tensors live.
        samples: Rows to draw.
        chunk: Rows drawn at once, at most: bounds the memory.
        tick: Called with the number of rows just done.
        done: Rows done so far.
    """

    generator: Generator
    samples: int
    chunk: int = 1 << 15
    tick: Callable[[int], None] = lambda rows: None
    done: int = field(default=0)

    def chunks(self, draws: int, rows: int = 1) -> Iterator[int]:
        """Split ``draws`` of so many rows each into chunks, ticking after each."""
        size = max(1, self.chunk // rows)
        for start in range(0, draws, size):
            part = min(size, draws - start)
            yield part
            self.done += part * rows
            self.tick(part * rows)


Measure = Callable[[Bench], list[Comparison]]


@dataclass(frozen=True, slots=True)
class Case:
    """One way to put a claim to the test.

    Args:
        name: Short name, unique within the claim.
        assumptions: What is drawn, in words.
        measure: Draws, and compares with the prediction.
        kind: ``claim``; ``negative control`` (a premise is broken on purpose); ``as printed`` (an
            erratum in the paper's wording); ``corrected`` (the erratum put right).
        random: False for algebraic identities, which need no rows.
    """

    name: str
    assumptions: str
    measure: Measure
    kind: Kind = "claim"
    random: bool = True

    @property
    def expected(self) -> Verdict:
        """Negative controls and errata as printed are to be refuted, all else to hold."""
        return "refuted" if self.kind in ("negative control", "as printed") else "holds"


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement of a paper with the cases that test it.

    Args:
        id: Stable identifier.
        title: A few words.
        source: Paper and number of the proposition, section or figure.
        statement: The statement in symbols.
        propositions: The numbers of the propositions it belongs to.
        cases: The tests.
    """

    id: str
    title: str
    source: str
    statement: str
    propositions: tuple[int, ...]
    cases: tuple[Case, ...]


def worst(comparisons: list[Comparison]) -> Comparison:
    """The comparison with the largest deviation."""
    return max(comparisons, key=lambda c: -1.0 if math.isnan(c.z) else abs(c.z))
