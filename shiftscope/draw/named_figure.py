"""A figure with the words that stand beside it."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

__all__ = ["NamedFigure", "sentence"]


@dataclass(frozen=True)
class NamedFigure:
    """A figure with its words.

    Attributes:
        name: Identifier, fit for a file name and an anchor.
        title: A few words.
        caption: What is drawn and how to read it, one to three sentences.
        alt: What the figure shows here, in one sentence with its numbers.
        figure: The drawing.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure


def sentence(*parts: str) -> str:
    """Join those of some sentences that are not empty."""
    return " ".join(part for part in parts if part)
