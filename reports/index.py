"""Writes this gallery's README.md from the recipes' docstrings and numbers."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

__all__ = ["page"]

HERE = Path(__file__).resolve().parent

HEAD = """\
# Gallery

The figures of T. Kutsuna, *Linearly Constrained Weights: Reducing Activation Shift for Faster
Training of Neural Networks* (ECML PKDD 2019, arXiv 2403.13833), drawn by short scripts through the
public interface of shiftscope. Each recipe writes its figure and its numbers:

```sh
python reports/01_stripes.py                                   # everything as committed here
python reports/03_layer_boxplots.py --quick --out somewhere    # fewer seeds, into another folder
python reports/03_layer_boxplots.py --cifar DIR                # CIFAR-10 in place of digits
```

Inputs are scikit-learn's digits, or exact CIFAR-10 images (`cifar10_exact.npz`) with `--cifar`.
In the tables *paper* is what the paper states or what follows from its propositions, by the source
given; ± is the standard error of the mean over seeds; *off by* is the difference in such errors.
Differences of many errors are real: theory is that of infinitely wide layers and normal z, and one
minibatch has few rows. `tests/reports/test_gallery.py` runs each recipe again at other seeds and
holds every number within its standard errors. `python reports/index.py` writes this page.
"""


def page() -> str:
    """The whole page, from the recipes and the numbers beside this file.

    Returns:
        Markdown.
    """
    return "\n".join([HEAD, *(_section(path) for path in sorted(HERE.glob("[0-9]*.py")))])


def _section(path: Path) -> str:
    """One recipe: its docstring, and a picture and a table for each kind of data."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    title, _, text = docstring.partition(".\n\n")
    parts = [f"## {title}\n\n[`{path.name}`]({path.name})\n\n{text}\n"]
    for name, data in ((path.stem, ""), (f"{path.stem}_cifar10", ", CIFAR-10 images")):
        numbers = HERE / "numbers" / f"{name}.json"
        if numbers.exists():
            picture = f"![{title}{data}](figures/{name}.png)\n"
            parts += [picture, _table(name, json.loads(numbers.read_text(encoding="utf-8")))]
    return "\n".join(parts)


def _table(name: str, numbers: list[dict[str, Any]]) -> str:
    """Quantity by quantity, folded so that the pictures stay together."""
    seeds, rows = len(numbers[0]["seeds"]), numbers[0]["rows"]
    lines = [
        f"<details><summary>Numbers: {seeds} seeds, {rows} samples each</summary>\n",
        "| quantity | paper | source | ours | off by |",
        "|---|---|---|---|---|",
        *map(_line, numbers),
        f"\n[numbers/{name}.json](numbers/{name}.json)\n\n</details>\n",
    ]
    return "\n".join(lines)


def _line(entry: dict[str, Any]) -> str:
    error = entry["standard_error"]
    ours = f"{entry['ours']:.4g} ± {error:.1g}"
    if entry["paper"] is None:
        return f"| {entry['quantity']} | – | | {ours} | |"
    off = f"{entry['difference'] / error:+.1f}"
    return f"| {entry['quantity']} | {entry['paper']:.4g} | {entry['source']} | {ours} | {off} |"


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")
