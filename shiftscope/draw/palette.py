"""One colour for each quantity, in every figure and in the report.

The hues are those of Okabe and Ito (Color Universal Design, 2008), moved in lightness by a search
until all quantities that share a panel stay at least 20 apart (CIE76 ΔE) in normal vision and under
simulated full protanopia, deuteranopia and tritanopia (Machado, Oliveira and Fernandes, 2009), and
every colour keeps a contrast of 3 : 1 on white (WCAG 2.1, 1.4.11). No plotting library needed.
"""

from __future__ import annotations

__all__ = ["COLORS", "SEVERITY_COLORS", "SEVERITY_MARKERS"]

COLORS = {
    "forward": "#1E5D48",
    "backward": "#2D8CD2",
    "shift": "#D7661E",
    "within": "#920E82",
    "theory": "#1A1A1A",
    "measured": "#888C94",
    "threshold": "#8C1004",
    "saturated": "#9A7400",
    "dead": "#4F3FA3",
}
"""Quantity -> colour: ``shift`` is variance between neurons, ``within`` variance inside them."""

SEVERITY_COLORS = {
    "info": "#4B6378",
    "watch": "#8A6A00",
    "serious": "#B8501A",
    "critical": "#8C1004",
}
"""Severity -> colour; the word and the marker always stand beside it."""

SEVERITY_MARKERS = {"info": "o", "watch": "D", "serious": "^", "critical": "v"}
"""Severity -> matplotlib marker."""
