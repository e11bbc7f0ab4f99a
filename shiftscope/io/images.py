"""Images on disk: one folder a class, or one sheet of tiles. Decoded by Pillow when needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shiftscope.errors import DataError, LoadError, UsageError
from shiftscope.io.formats import readable_file
from shiftscope.io.sources import ArraySource, to_inputs

__all__ = ["ImageSource", "decode", "read_image_folder", "read_sprite"]

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})


class ImageSource:
    """Image files, decoded when asked for.

    Args:
        files: The files, in order.
        y: Class of each.
        classes: Names of the classes.
    """

    def __init__(self, files: Sequence[Path], y: Sequence[int], classes: Sequence[str]) -> None:
        """Look at the first image for the size that all must have."""
        self.files = list(files)
        self.y = torch.tensor(y)
        self.classes: tuple[str, ...] | None = tuple(classes)
        self.labelled = True
        self.shape = tuple(decode(self.files[0]).shape)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def rows(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Decode the named images.

        Args:
            indices: Row numbers.

        Returns:
            Inputs ``[rows, channels, height, width]`` in [0, 1], and labels.

        Raises:
            DataError: An image has another size than the first.
        """
        images = []
        for index in indices:
            image = decode(self.files[index])
            if image.shape != self.shape:
                raise DataError(
                    f"{self.files[index]} has shape {list(image.shape)}, "
                    f"the first image {list(self.shape)}",
                    "resize all images to one size and colour mode",
                )
            images.append(image)
        batch = torch.from_numpy(np.stack(images))
        return to_inputs(batch), self.y[torch.as_tensor(indices)]


def decode(path: Path) -> npt.NDArray[np.uint8]:
    """Read an image with Pillow.

    Args:
        path: The file.

    Returns:
        ``[channels, height, width]`` bytes: one channel for grey images, three for all others.

    Raises:
        LoadError: It is no readable image.
    """
    pillow = _pillow()
    try:
        with pillow.open(path) as image:
            grey = image.mode in {"1", "L", "LA"}
            pixels = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.uint8)
    except Exception as error:
        # Pillow raises many types on damaged files, and its own for decompression bombs
        raise LoadError(
            f"{path} is no readable image: {str(error).splitlines()[0]:.150}",
            "remove or replace the file",
        ) from None
    return pixels[None] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("images need the package Pillow", "pip install pillow") from None
    return Image


def read_image_folder(folder: Path) -> ImageSource:
    """Images in one folder a class; classes are numbered in alphabetical order.

    Args:
        folder: Its subfolders are the classes.

    Returns:
        The images, sorted by class and name.

    Raises:
        LoadError: There are no images.
    """
    if not folder.is_dir():
        raise LoadError(f"{folder} is no folder", "check the path")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    files: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        found = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in _SUFFIXES)
        files += found
        labels += [number] * len(found)
    if not files:
        raise LoadError(
            f"{folder} holds no images in folders of classes", "arrange them as DIR/CLASS/IMAGE.png"
        )
    return ImageSource(files, labels, classes)


def read_sprite(path: Path, tile: Sequence[int], classes: int) -> ArraySource:
    """Cut an image of equal tiles, row by row.

    Args:
        path: The image.
        tile: Height and width of a tile in pixels.
        classes: Labels for as many equal runs of tiles, top to bottom; 0 for none.

    Returns:
        Inputs ``[tiles, channels, height, width]`` bytes, and labels.

    Raises:
        DataError: The tiles do not fill the image, or the classes do not divide the tiles.
    """
    readable_file(path)
    image = decode(path)
    if (image == image[:1]).all():
        image = image[:1]  # grey, whatever mode it was saved in
    channels, height, width = image.shape
    rows, columns = height // tile[0], width // tile[1]
    if (rows * tile[0], columns * tile[1]) != (height, width):
        raise DataError(
            f"{path} has {height}x{width} pixels: tiles of {tile[0]}x{tile[1]} do not fill it",
            "give the size of one tile: sprite:FILE:HEIGHTxWIDTH",
        )
    split = image.reshape(channels, rows, tile[0], columns, tile[1])
    x = split.transpose(1, 3, 0, 2, 4).reshape(rows * columns, channels, *tile)
    if classes and len(x) % classes:
        raise DataError(f"{path}: {len(x)} tiles are no {classes} equal runs", "correct the number")
    y = np.arange(len(x)) // (len(x) // classes) if classes else None
    return ArraySource(x, y, str(path))
