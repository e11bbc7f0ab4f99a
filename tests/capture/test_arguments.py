"""Arguments of analyze and trial that have no meaning: refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import shiftscope as ss


@pytest.mark.parametrize("verb", [ss.analyze, ss.trial])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"rows": None}, "rows must be a whole number, got None"),
        ({"rows": True}, "rows must be a whole number, got True"),
        ({"rows": torch.ones(2, 2)}, "rows must be a whole number, got a Tensor"),
        ({"manifest": 3}, "manifest is 3, expected a mapping"),
        ({"inputs": []}, "inputs is a list, expected a mapping"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"device": 2.5}, "device is 2.5"),
        ({"dtype": "float6"}, "dtype is 'float6'"),
        ({"loss_fn": nn.MSELoss}, "loss_fn is the class MSELoss"),
        ({"loss_fn": 3}, "loss_fn is 3"),
    ],
)
def test_they_are_refused(verb: Any, options: dict[str, Any], says: str) -> None:
    def data() -> Any:
        raise AssertionError("the data were read")
        yield

    with pytest.raises(ss.UsageError, match=says) as caught:
        verb(**{"model": nn.Linear(2, 2), "data": data(), **options})
    assert caught.value.remedy
    assert "\n" not in caught.value.reason


@pytest.mark.parametrize("sites", [3, None, [], [3]])
def test_sites_are_patterns(sites: Any) -> None:
    with pytest.raises(ss.UsageError, match="expected patterns of names"):
        ss.analyze(nn.Linear(2, 2), [torch.ones(3, 2)], sites=sites)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"start": "4"}, "start must be a whole number, got '4'"),
        ({"start": 1.5}, "start must be a whole number, got 1.5"),
        ({"start": -1}, "start must be at least 0"),
        ({"boundaries": 3}, "boundaries is 3, expected patterns of names"),
    ],
)
def test_those_of_watch_are_refused_before_training(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ss.UsageError, match=says) as caught:
        ss.watch(nn.Linear(2, 2), **options)
    assert caught.value.remedy


def test_a_phase_has_a_name() -> None:
    model = nn.Linear(3, 2)
    with ss.watch(model) as probe:
        with pytest.raises(ss.UsageError, match="phase is 3, expected a str"), probe.record(3):
            pass
        with probe.record("test"), torch.no_grad():
            model(torch.randn(4, 3))
        (record,) = probe.snapshot("test").records.values()
        assert record.samples == 4
