"""Laws of random vectors with known mean and covariance, drawn with one's own torch generator.

A law is unit noise (mean 0, covariance I or a correlation matrix) that is then scaled by σ and
moved to a mean. Every law has all moments, so that standard errors of variances can be estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

__all__ = ["LAWS", "Law", "Source"]

Noise = Callable[[Generator, tuple[int, ...]], Tensor]


def _gaussian(generator: Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)


def _flat(generator: Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def _uniform(generator: Generator, shape: tuple[int, ...]) -> Tensor:
    return (_flat(generator, shape) - 0.5).mul_(math.sqrt(12.0))


def _laplace(generator: Generator, shape: tuple[int, ...]) -> Tensor:
    draw = torch.empty(shape, device=generator.device, dtype=torch.float64)
    first = draw.exponential_(generator=generator).clone()
    return first.sub_(draw.exponential_(generator=generator)).mul_(math.sqrt(0.5))


def _signs(generator: Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.where(_flat(generator, shape) < 0.5, -1.0, 1.0).double()


def _rare(generator: Generator, shape: tuple[int, ...]) -> Tensor:
    """Two values, the upper one taken one time in five: skewed and discrete."""
    return torch.where(_flat(generator, shape) < 0.2, 2.0, -0.5).double()


def _scaled(generator: Generator, shape: tuple[int, ...]) -> Tensor:
    """Gaussian rows of random size: uncorrelated, yet dependent and heavy-tailed."""
    size = _flat(generator, (*shape[:-1], 1)).mul_(1.5).add_(0.25)
    return _gaussian(generator, shape).mul_(size.sqrt_())


@dataclass(frozen=True, slots=True)
class Law:
    """A law of noise with mean 0 and unit variances.

    Args:
        name: One word for tables.
        text: What it is, in words.
        noise: Draws float64 noise of a shape, neurons last.
        correlation: Correlation of neighbouring coordinates; it decays geometrically (0 = none).
    """

    name: str
    text: str
    noise: Noise
    correlation: float = 0.0


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law("gaussian", "independent Gaussian coordinates", _gaussian),
        Law("uniform", "independent uniform coordinates", _uniform),
        Law("laplace", "independent heavy-tailed (Laplace) coordinates", _laplace),
        Law("signs", "independent two-point coordinates", _signs),
        Law("rare", "independent, discrete and skewed coordinates", _rare),
        Law("scaled", "uncorrelated but dependent coordinates (random row scale)", _scaled),
        Law("correlated", "Gaussian coordinates with correlations 0.8^|i-j|", _gaussian, 0.8),
        Law("mixed", "sums of Laplace variables with correlations 0.6^|i-j|", _laplace, 0.6),
    )
}
"""The laws claims are tested under, by name."""


@dataclass(frozen=True, slots=True)
class Source:
    """Random rows ``a = mean + σ·noise`` of a known law.

    Args:
        law: The law of the noise.
        mean: Mean vector, float64 [m].
        std: Standard deviation σ of every coordinate.
    """

    law: Law
    mean: Tensor
    std: float

    @property
    def covariance(self) -> Tensor:
        """The covariance matrix, float64 [m, m]."""
        size = self.mean.numel()
        place = torch.arange(size, device=self.mean.device, dtype=torch.float64)
        distance = (place[:, None] - place).abs()
        rho = self.law.correlation
        unit = rho**distance if rho else (distance == 0).double()
        return self.std**2 * unit

    def draw(self, generator: Generator, rows: int) -> Tensor:
        """Independent rows, float64 [rows, m], from ``generator`` and on its device."""
        noise = self.law.noise(generator, (rows, self.mean.numel()))
        if self.law.correlation:
            root: Tensor = torch.linalg.cholesky(self.covariance)
            return noise @ root.T + self.mean
        return noise.mul_(self.std).add_(self.mean)
