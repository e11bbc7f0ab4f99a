"""How far the sites of a real network are from the premise of Propositions 4 and 5.

The propositions assume uncorrelated inputs of equal variance. Real layers have others: the means
over neurons still agree, single neurons do not. That is a broken premise, not a violated
proposition, and this table says how far it is broken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from shiftscope.errors import UsageError
from shiftscope.theory.linear import Isotropy, isotropy

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["premise_table"]

_COLUMNS = ["site", "ratio", "cv", "noise", "premise_holds", "neurons", "ratio_backward", "note"]
_NEEDED = {"sites": ("site", "eta_measured"), "neurons": ("site", "z_var", "weight_norm", "count")}


def premise_table(sites: pd.DataFrame, neurons: pd.DataFrame) -> pd.DataFrame:
    """Spread of V(z_i) / (σ²‖w_i‖²) over the neurons of every linear site of a snapshot.

    Args:
        sites: ``snapshot.sites``.
        neurons: ``snapshot.neurons``.

    Returns:
        One row a measured linear site: ``site``, ``ratio`` (mean; 1 under the premise), ``cv``
        (coefficient of variation; 0 under it), ``noise`` (the cv that sampling alone gives),
        ``premise_holds``, ``neurons``, ``ratio_backward`` (the like for gradients, Proposition 5:
        measured over predicted variance of ∇a; NaN without gradients) and ``note``, a sentence.

    Raises:
        UsageError: A column is missing.
    """
    import pandas as pd

    for frame, name in ((sites, "sites"), (neurons, "neurons")):
        missing = [c for c in _NEEDED[name] if c not in frame.columns]
        if missing:
            raise UsageError(
                f"the {name} table has no column {missing[0]!r}",
                "Pass snapshot.sites and snapshot.neurons.",
            )
    parts = dict(list(neurons.groupby("site", sort=False)))
    rows = [
        _row(site, parts[site["site"]])
        for site in sites.to_dict("records")
        if site["site"] in parts
    ]
    return pd.DataFrame([row for row in rows if row is not None], columns=_COLUMNS)


def _row(site: Mapping[Any, Any], neurons: pd.DataFrame) -> dict[str, Any] | None:
    """The row of one site; None where its linear map was not measured."""
    eta = float(site["eta_measured"])
    variance = neurons["z_var"].to_numpy(dtype=np.float64)
    norm = neurons["weight_norm"].to_numpy(dtype=np.float64)
    known = np.isfinite(variance) & np.isfinite(norm) & (norm > 0)
    if not (np.isfinite(eta) and eta > 0 and known.any() and variance[known].any()):
        return None
    rows = int(neurons["count"].max())
    # positions of one image or tokens of one sequence are not independent
    rows = min(rows, int(site.get("samples") or rows))
    inputs = float(variance[np.isfinite(variance)].mean()) / eta
    result = isotropy(variance[known], norm[known], inputs, max(rows, 2))
    predicted, measured = float(site.get("xi", math.nan)), float(site.get("xi_measured", math.nan))
    return {
        "site": str(site["site"]),
        "ratio": result.ratio,
        "cv": result.cv,
        "noise": result.noise,
        "premise_holds": result.premise_holds,
        "neurons": result.neurons,
        "ratio_backward": measured / predicted if predicted > 0 else math.nan,
        "note": _note(result),
    }


def _note(result: Isotropy) -> str:
    if result.premise_holds:
        return "inputs are uncorrelated within sampling error: Proposition 4 applies"
    return (
        f"inputs are correlated or of unequal variance: single neurons spread by "
        f"{100 * result.cv:.0f} % around σ²‖w‖²; the premise of Proposition 4 fails here, the "
        "proposition is not contradicted"
    )
