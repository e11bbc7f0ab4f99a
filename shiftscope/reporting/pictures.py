"""Figures as they stand in a page: PNG with words, light enough to be carried inline."""

from __future__ import annotations

import io
from dataclasses import dataclass

__all__ = ["Picture"]

_COLOURS = 256


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in the page.

    Attributes:
        name: Identifier, fit for a file name and an anchor.
        title: A few words.
        caption: What is drawn and how to read it.
        alt: What it shows here, in one sentence.
        png: The content of the PNG file.
    """

    name: str
    title: str
    caption: str
    alt: str
    png: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the header of the file."""
        header = self.png[16:24]
        return int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")

    def inline(self) -> bytes:
        """The picture with a palette of 256 colours: a third of the bytes, alike to the eye."""
        from PIL import Image

        with Image.open(io.BytesIO(self.png)) as image:
            exact = image.convert("RGB")
        # Median cut, the default, spends the palette on large areas: colour bars get false bands.
        few = exact.quantize(
            _COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
        )
        buffer = io.BytesIO()
        few.save(buffer, "PNG", optimize=True)
        return min(buffer.getvalue(), self.png, key=len)
