"""Snapshots that reports are tested with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pandas as pd
import torch
from standin import measure, mlp
from torch import nn

from shiftscope.record import SiteRecord
from shiftscope.snapshot import Snapshot

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "{{7*7}}{% raw %}",
    "[bold red]x[/bold red]",
    "\x1b[2J\x1b]0;title\x07",
    "../../etc/x",
    "y" * 400,
    "nul\0byte",
    "$x^2$ & \"q\" 'r'",
    "line\u2028break\u202eback",
    "",
)


@cache
def sick(depth: int = 8, width: int = 24, rows: int = 60) -> Snapshot:
    """A deep sigmoid network with standard weights: shift, vanishing gradient, the lot."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (rows,), generator=generator)
    model = mlp([width] * (depth + 1) + [10], nn.Sigmoid)
    return measure(model, x, y, sample=40, accuracy=0.1, loss=2.31, checkpoint="<net>.pt")


@cache
def hostile() -> Snapshot:
    """The same with names that want to be code; also as module, gap, key and value."""
    snapshot = sick()
    names = dict(zip(snapshot.records, HOSTILE, strict=False))
    return replace(
        renamed(snapshot, lambda name: names.get(name, name)),
        gaps=(("</script><b>gap", "\x1b[31mbecause & <i>why</i>"),),
        manifest={**snapshot.manifest, "<key>": "</script>", "model": "{{1+1}}"},
        inputs={"[red]classes": {"<0>": 1.0}},
    )


def renamed(snapshot: Snapshot, rename: Callable[[str], str]) -> Snapshot:
    """The snapshot with other site names."""
    records = {rename(name): _renamed(r, rename(name)) for name, r in snapshot.records.items()}
    return replace(snapshot, records=records)


@cache
def wide(sites: int, width: int = 16) -> Snapshot:
    """A network of many sites: a small one, repeated, with tables that are repeated as well."""
    small = sick(width=width)
    records = {}
    parts = [(record, small.sites.iloc[[at]]) for at, record in enumerate(small.records.values())]
    neurons = dict(list(small.neurons.groupby("site")))
    tables: dict[str, list[pd.DataFrame]] = {"sites": [], "neurons": []}
    for order in range(sites):
        record, row = parts[order % 16]
        name = f"blocks.{order // 4}.part{order % 4}"
        info = replace(record.info, site=name, module=name, order=order)
        records[name] = replace(record, info=info)
        tables["sites"].append(row.assign(site=name, module=name, order=order))
        tables["neurons"].append(neurons[record.info.site].assign(site=name))
    many = replace(small, records=records)
    vars(many).update({key: pd.concat(part, ignore_index=True) for key, part in tables.items()})
    vars(many)["quantiles"] = {
        name: small.quantiles[parts[at % 16][0].info.site] for at, name in enumerate(records)
    }
    return many


def _renamed(record: SiteRecord, name: str) -> SiteRecord:
    return replace(record, info=replace(record.info, site=name, module=name))
