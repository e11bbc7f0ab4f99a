"""What the recipes of this gallery share: options, inputs, and numbers with their errors.

A recipe is a script of one experiment. It draws the figure of its first seed, measures its numbers
at every seed, and writes ``figures/NAME.png`` and ``numbers/NAME.json`` into ``--out`` (this
folder, unless told otherwise).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import shiftscope as ss

__all__ = ["Number", "Recipe", "Run", "minibatch", "number"]

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Number:
    """One quantity: what the paper or its theory says, and what was measured.

    Attributes:
        quantity: What it is, in words.
        paper: The value stated or derived; None where there is none.
        source: Where that value comes from.
        ours: Mean over the seeds.
        difference: ``ours − paper``; None where there is nothing to compare with.
        standard_error: Standard error of the mean over the seeds.
        rows: Samples behind each seed's value.
        seeds: The seeds.
    """

    quantity: str
    paper: float | None
    source: str
    ours: float
    difference: float | None
    standard_error: float
    rows: int
    seeds: list[int]


@dataclass(frozen=True)
class Run:
    """How a recipe is to be run.

    Attributes:
        seeds: One experiment each.
        cifar: Folder with ``cifar10_exact.npz``; None for scikit-learn's digits.
    """

    seeds: tuple[int, ...]
    cifar: Path | None

    def data(self) -> ss.experiments.Labelled:
        """Inputs of zero mean: digits centred pixel by pixel, or images by channel.

        Returns:
            All rows, flattened, in the order of the first seed's shuffle (digits) or of the file.
        """
        if self.cifar is None:
            whole = ss.experiments.digits(held_out=1).training
            centred = whole.x - whole.x.mean(0)
            return ss.experiments.Labelled(centred / centred.std(), whole.y)
        with np.load(self.cifar / "cifar10_exact.npz") as file:
            x, y = torch.from_numpy(file["x_train"]).float(), torch.from_numpy(file["y_train"])
        mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
        return ss.experiments.Labelled(((x - mean) / std).flatten(1), y.long())


def number(
    quantity: str,
    values: Sequence[float],
    run: Run,
    rows: int,
    paper: float | None = None,
    source: str = "",
) -> Number:
    """Sum up one quantity over the seeds.

    Args:
        quantity: What it is.
        values: One value a seed.
        run: Whose seeds.
        rows: Samples behind each value.
        paper: What is expected.
        source: Says who.

    Returns:
        The number with its standard error.
    """
    ours = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    difference = None if paper is None else ours - paper
    return Number(quantity, paper, source, ours, difference, error, rows, list(run.seeds))


def minibatch(data: ss.experiments.Labelled, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows drawn at random without replacement.

    Args:
        data: Where from.
        rows: How many.
        seed: Decides which.

    Returns:
        Inputs and classes.
    """
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:rows]
    return data.x[chosen], data.y[chosen]


@dataclass(frozen=True)
class Recipe:
    """A recipe as a command.

    Attributes:
        file: The script, as ``__file__``.
        make: Runs the experiment: the figure and the numbers.
        seeds: How many seeds.
        quick: How many with ``--quick``; the experiment itself stays the same.
        images: Whether it can look at images.
    """

    file: str
    make: Callable[[Run], tuple[Figure, list[Number]]]
    seeds: int
    quick: int
    images: bool = True

    def __call__(self, argv: Sequence[str] | None = None) -> None:
        """Run the recipe and write its two files.

        Args:
            argv: The arguments; those of the process by default.
        """
        parser = self._parser()
        arguments = parser.parse_args(argv)
        count = self.quick if arguments.quick else self.seeds
        seeds = tuple(range(arguments.seed, arguments.seed + count))
        cifar = getattr(arguments, "cifar", None)
        if cifar and not (cifar / "cifar10_exact.npz").is_file():
            parser.error(f"no cifar10_exact.npz in {cifar}; name its folder: --cifar DIR")
        figure, numbers = self.make(Run(seeds, cifar))
        name = Path(self.file).stem + ("_cifar10" if cifar else "")
        self._write(arguments.out, name, figure, numbers)

    def _write(self, out: Path, name: str, figure: Figure, numbers: list[Number]) -> None:
        picture = out / "figures" / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(compact(ss.draw.to_png_bytes(figure)))
        lines = [json.dumps(asdict(n), allow_nan=False, ensure_ascii=False) for n in numbers]
        place = out / "numbers" / f"{name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
        for entry in numbers:
            print(f"{entry.quantity:64} {entry.ours:12.5g} ± {entry.standard_error:.2g}")

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=Path(self.file).name)
        parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
        parser.add_argument("--quick", action="store_true", help=f"{self.quick} seeds only")
        parser.add_argument("--out", type=Path, default=HERE, help="where to write (default: here)")
        if self.images:
            parser.add_argument(
                "--cifar",
                metavar="DIR",
                type=Path,
                nargs="?",
                const=shared_images(),
                help="CIFAR-10 in place of digits: the folder of cifar10_exact.npz "
                "(default: data/cifar10 in $SHIFTSCOPE_SHARED)",
            )
        return parser


def compact(png: bytes) -> bytes:
    """The same picture in 255 colours: half the size, and nobody sees the difference.

    Args:
        png: A PNG file.

    Returns:
        A smaller one.
    """
    out = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(255, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def shared_images() -> Path:
    """Where the exact CIFAR-10 images lie if nobody says otherwise."""
    shared = os.environ.get("SHIFTSCOPE_SHARED") or HERE.parents[1] / "shared"
    return Path(shared) / "data" / "cifar10"
