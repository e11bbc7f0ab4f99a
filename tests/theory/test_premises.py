"""On real layers the premise may fail; the table says by how much and blames no proposition."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from support import shared_path

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
    assert table["ratio_backward"].isna().all()  # no loss


def test_positions_of_one_image_do_not_count_as_rows() -> None:
    import torch

    import shiftscope as ss

    torch.manual_seed(0)
    snapshot = ss.analyze(torch.nn.Conv2d(3, 8, 3), [torch.randn(50, 3, 20, 20)])
    (row,) = premise_table(snapshot.sites, snapshot.neurons).to_dict("records")
    assert row["noise"] == pytest.approx(math.sqrt(2 / 50))
    assert row["premise_holds"]


def test_real_sigmoid_layers_spread_by_a_third_on_real_images() -> None:
    """Ten layers with zero-sum weights on a thousand images: 0.28 to 0.40, 1 on average."""
    import torch

    import shiftscope as ss

    with np.load(shared_path("data/cifar10/cifar10_exact.npz")) as file:
        images = torch.from_numpy(file["x_train"][:1000]).double()
    mean, std = (f(images, (0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    x = ((images - mean) / std).flatten(1)
    y = torch.randint(10, (1000,), generator=torch.Generator().manual_seed(0))
    model = ss.experiments.mlp(x.shape[1], 256, 9, seed=0, dtype=torch.float64)
    ss.constrain(model, "lcw")
    ss.rescale_(model, x)
    loss = torch.nn.functional.cross_entropy
    snapshot = ss.analyze(model, [(x, y)], loss, dtype=torch.float64)
    table = premise_table(snapshot.sites, snapshot.neurons)[:9]  # not the ten output neurons
    assert table["cv"].between(0.28, 0.40).all()
    assert not table["premise_holds"].any()
    np.testing.assert_allclose(table["ratio"][1:], 1.0, atol=0.05)
    np.testing.assert_allclose(table["ratio_backward"][1:], 1.0, atol=0.1)
    assert table["note"].str.endswith("the proposition is not contradicted").all()
    assert not table["note"].str.contains("violat").any()
