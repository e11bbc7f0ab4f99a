"""Figures as PNG: bytes for the report, files that appear whole or not at all."""

from __future__ import annotations

import io
import os

from matplotlib.figure import Figure

from shiftscope.draw.style import DPI, drawing
from shiftscope.files import atomic_file
from shiftscope.given import expect

__all__ = ["save_png", "to_png_bytes"]


@drawing()
def to_png_bytes(figure: Figure, dpi: int = DPI) -> bytes:
    """Render a figure as PNG; equal figures give equal bytes.

    Args:
        figure: What to render.
        dpi: Pixels per inch.

    Returns:
        The content of a PNG file.

    Raises:
        UsageError: It is no figure.
    """
    expect("figure", figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save_png(figure: Figure, path: str | os.PathLike[str], dpi: int = DPI) -> None:
    """Write a figure as a PNG file, whole or not at all.

    Args:
        figure: What to render.
        path: The file to write; its parent folders are made.
        dpi: Pixels per inch.

    Raises:
        UsageError: The file cannot be written.
    """
    content = to_png_bytes(figure, dpi)
    with atomic_file(path) as file:
        file.write(content)
