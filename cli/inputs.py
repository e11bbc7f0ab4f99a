"""Options that say what is measured and how; several commands share them."""

from __future__ import annotations

from typing import Any

from . import options

__all__ = ["EPILOG", "measuring", "sources"]

EPILOG = """\
specs:
  --model      package.module:factory | file.py:factory | torchvision:NAME |
               timm:NAME | transformers:DIR | mlp:ACTIVATION[@PART] (widths read
               from the weights); not needed for an exported FILE.pt2
  --data       digits | mnist:DIR | cifar10:DIR | cifar100:DIR | images:DIR |
               sprite:FILE:HxW[:CLASSES] | FILE.npz | FILE.safetensors |
               package.module:loader | file.py:loader | normal:3x32x32 (synthetic)
  --loss       cross_entropy | nll | mse | bce | none | package.module:function |
               file.py:function
  --normalize  imagenet | cifar10 | cifar100 | mnist | half | none | MEAN/STD
"""


def sources(group: Any) -> None:
    """Add model, data and loss, and how to read the checkpoint.

    Args:
        group: An argument group.
    """
    group.add_argument("--model", metavar="SPEC", help="what to load the weights into")
    group.add_argument("--data", metavar="SPEC", help="what to run through the model")
    group.add_argument("--loss", metavar="SPEC", help="none: forward only (default: by the labels)")
    group.add_argument(
        "--normalize", metavar="SPEC", help="MEAN/STD such as 0.5/0.5, a preset, or none"
    )
    group.add_argument(
        "--state", metavar="NAME", help="which weights, where CHECKPOINT holds several (e.g. ema)"
    )
    group.add_argument(
        "--trust-pickle",
        action="store_true",
        help="run the code inside CHECKPOINT; only for files you wrote yourself",
    )


def measuring(group: Any) -> None:
    """Add batches, device, precision and seed.

    Args:
        group: An argument group.
    """
    whole = options.count(1)
    group.add_argument(
        "--batches", metavar="N", type=whole, help="at most N batches (default: all)"
    )
    group.add_argument("--batch-size", metavar="N", type=whole, default=256, help="default: 256")
    group.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:1")
    group.add_argument("--dtype", choices=("float32", "float64"), help="measure in this precision")
    group.add_argument("--seed", metavar="N", type=options.seed, default=0, help="default: 0")
