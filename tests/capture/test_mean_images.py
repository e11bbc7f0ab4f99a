"""Sums of mean input images, against adding them one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shiftscope.capture.mean_images import MeanImages
from shiftscope.capture.site_state import SiteState
from shiftscope.record import SiteInfo


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_are_summed_by_site_and_size_and_only_finite_ones(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sums, op = MeanImages(), object()  # nothing is asked of the op
    states = [SiteState(SiteInfo(name, "linear", "conv2d", name, 2)) for name in "ab"]
    wanted: dict[Any, list[Any]] = {}
    for step in range(5):
        images = []
        for number in (0, 1, 1, 0):
            image = torch.randn(2, 3 + step % 2, 3).to(dtype)
            samples, key = 1 + number + step, (states[number].info.site, tuple(image.shape))
            total = wanted.setdefault(key, [torch.zeros(image.shape, dtype=torch.float64), 0.0])
            if (step, number) in ((1, 0), (3, 1)):
                image[0, 1, 2] = (torch.nan, torch.inf)[number]
            else:
                total[0].add_(image.double(), alpha=samples)
                total[1] += samples
            images.append((states[number], op, image, samples, False))
        sums.add(images)
    assert {key: entry.samples for key, entry in sums._sums.items()} == {
        key: samples for key, (_, samples) in wanted.items()
    }
    for key, entry in sums._sums.items():
        assert torch.equal(entry.total, wanted[key][0])
