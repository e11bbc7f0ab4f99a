"""The numbers behind a finding: rates, bounds, and how they are written."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from shiftscope.findings import Evidence
from shiftscope.findings.finding import percent
from shiftscope.findings.profile import fit_profile
from shiftscope.findings.reading import share_error


def test_the_rate_is_the_textbook_regression() -> None:
    rng = np.random.default_rng(3)
    logs = 0.4 * np.arange(12) + rng.normal(0, 0.3, 12)
    rows = [{"site": str(i), "samples": 10**9} for i in range(12)]
    profile = fit_profile(rows, list(logs), rising=True)
    line = stats.linregress(np.arange(12), logs)
    assert profile is not None
    assert profile.rate == pytest.approx(line.slope)
    assert profile.rate_se == pytest.approx(line.stderr, rel=1e-4)


def test_one_odd_layer_alone_raises_no_alarm() -> None:
    rows = [{"site": str(i), "samples": 1000} for i in range(10)]
    profile = fit_profile(rows, [-9.0] + [0.0] * 9, rising=True)
    assert profile is not None
    assert profile.measured == 9.0
    assert not profile.exceeds(3.3, 2.0)


def test_the_bound_of_the_share_covers_its_spread() -> None:
    """Share over 200 draws of few samples, against the worst-case error where none was measured."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        z = rng.normal(size=200) + rng.normal(size=(30, 200))
        within, between = z.var(0).mean(), z.mean(0).var() - z.var(0).mean() / 30
        shares.append(between / (between + within))
    error = share_error({"shift_share": float(np.mean(shares)), "samples": 30, "count": 30})
    assert np.std(shares) < error < 1


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.5, "50 %"),
        (0.985, "98 %"),
        (0.9987, "99 %"),
        (0.9997, "99.9 %"),
        (0.99998, "99.99 %"),
        (0.99999999, "over 99.9999 %"),
        (1.0, "over 99.9999 %"),
    ],
)
def test_shares_near_one_keep_their_nines(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        (Evidence(0.7312, se=0.0123), "0.731 ± 0.012"),
        (Evidence(5.0, se=0.2, unit="decades", rows=900), "5.00 ± 0.20 decades from 900 rows"),
        (Evidence(0, high=0.003, site="a"), "0 (below 0.003 at 95 % confidence) at a"),
        (Evidence(math.nan), "not measured"),
    ],
)
def test_evidence_shows_the_digits_its_error_leaves(evidence: Evidence, text: str) -> None:
    assert evidence.text() == text
