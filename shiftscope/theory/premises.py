"""How far the sites of a real network are from the premise of Propositions 4 and 5.

The propositions assume uncorrelated inputs of equal variance. Real layers have others: the means
over neurons still agree, single neurons do not. That is a broken premise, not a violated
proposition, and this table says how far it is broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shiftscope.errors import UsageError
from shiftscope.theory.linear import isotropy

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["premise_table"]

_NEEDED = {"sites": ("site", "eta_measured"), "neurons": ("site", "z_var", "weight_norm", "count")}


def premise_table(sites: pd.DataFrame, neurons: pd.DataFrame) -> pd.DataFrame:
    """Spread of V(z_i) / (σ²‖w_i‖²) over the neurons of every linear site of a snapshot.

    Args:
        sites: ``snapshot.sites``.
        neurons: ``snapshot.neurons``.

    Returns:
        One row a measured linear site: ``site``, ``ratio`` (1 on average under the premise),
        ``cv`` (0 under it), ``noise`` (the cv that sampling alone gives), ``premise_holds``,
        ``neurons`` and ``note``, a sentence for readers.

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
    gains = sites["eta_measured"].to_numpy(dtype=np.float64).tolist()
    rows = [_row(str(s), eta, neurons) for s, eta in zip(sites["site"], gains, strict=True)]
    return pd.DataFrame([row for row in rows if row is not None])


def _row(site: str, eta: float, neurons: pd.DataFrame) -> dict[str, Any] | None:
    """The row of one site; None where its linear map was not measured."""
    mine = neurons[neurons["site"] == site]
    variance = mine["z_var"].to_numpy(dtype=np.float64)
    norm = mine["weight_norm"].to_numpy(dtype=np.float64)
    known = np.isfinite(variance) & np.isfinite(norm) & (norm > 0)
    if not (np.isfinite(eta) and eta > 0 and known.any() and variance[known].any()):
        return None
    rows = int(mine["count"].max())
    result = isotropy(variance[known], norm[known], float(variance.mean()) / eta, max(rows, 2))
    return {
        "site": site,
        "ratio": result.ratio,
        "cv": result.cv,
        "noise": result.noise,
        "premise_holds": result.premise_holds,
        "neurons": result.neurons,
        "note": _note(result.cv, result.premise_holds),
    }


def _note(cv: float, holds: bool) -> str:
    if holds:
        return "inputs are uncorrelated within sampling error: Proposition 4 applies"
    return (
        f"inputs are correlated: single neurons spread by {100 * cv:.0f} % around σ²‖w‖²; "
        "the premise of Proposition 4 fails here, the proposition is not contradicted"
    )
