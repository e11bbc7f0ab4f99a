"""On real layers the premise may fail; the table says by how much and blames no proposition."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from shiftscope.errors import UsageError
from shiftscope.theory.premises import premise_table


def measured(site: str, a: np.ndarray, w: np.ndarray) -> tuple[dict[str, object], pd.DataFrame]:
    """The two tables of a snapshot, for one linear layer with all activations stored."""
    z = a @ w.T
    neurons = pd.DataFrame(
        {
            "site": site,
            "z_var": z.var(axis=0),
            "weight_norm": np.linalg.norm(w, axis=1),
            "count": len(a),
        }
    )
    return {"site": site, "eta_measured": z.var(axis=0).mean() / a.var(axis=0).mean()}, neurons


def test_correlated_inputs_break_the_premise_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(256, 256)) / 16
    free = rng.normal(size=(1000, 256))
    layered = free
    for _ in range(12):  # a deep sigmoid net with zero-sum rows correlates its activations
        weights = rng.normal(size=(256, 256))
        z = layered @ (weights - weights.mean(axis=1, keepdims=True)).T
        layered = 1 / (1 + np.exp(-z / z.std()))
    first, second = measured("first", free, w), measured("deep", layered, w)
    other = {"site": "act", "eta_measured": math.nan}
    sites = pd.DataFrame([first[0], other, second[0]])
    table = premise_table(sites, pd.concat([first[1], second[1]])).set_index("site")
    assert list(table.index) == ["first", "deep"]
    assert bool(table.loc["first", "premise_holds"])
    assert not bool(table.loc["deep", "premise_holds"])
    np.testing.assert_allclose(table["ratio"], 1.0, atol=0.1)
    assert 0.2 < table.loc["deep", "cv"] < 0.5
    ratio = second[1]["z_var"] / (layered.var(axis=0).mean() * (w**2).sum(axis=1))
    assert table.loc["deep", "cv"] == pytest.approx(ratio.std(ddof=0) / ratio.mean(), rel=1e-9)
    assert "not contradicted" in table.loc["deep", "note"]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(UsageError, match="sites table has no column 'eta_measured'"):
        premise_table(pd.DataFrame({"site": []}), pd.DataFrame())


def test_it_reads_a_real_snapshot() -> None:
    import torch

    import shiftscope as ss

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Sigmoid(), torch.nn.Linear(32, 8))
    snapshot = ss.analyze(model, [torch.randn(400, 16)])
    table = premise_table(snapshot.sites, snapshot.neurons)
    assert len(table) == 2
    assert bool(table["premise_holds"].iloc[0])
    np.testing.assert_allclose(table["ratio"], 1.0, atol=0.3)
