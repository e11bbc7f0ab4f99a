"""The networks, the data and the training of the LCW paper's experiments, at the size of a laptop.

Deep multilayer perceptrons, scikit-learn's digits in place of CIFAR-10, and stochastic gradient
descent as Kutsuna (ECML-PKDD 2019), Section 6.1, states it. The demo, the gallery and the tests all
train through this door; everything is drawn from generators of its own, so that equal seeds give
equal networks whatever else the process draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from shiftscope.errors import UsageError
from shiftscope.io import load_data

__all__ = ["Labelled", "Split", "digits", "mlp", "train"]

_DIGITS = 1797


@dataclass(frozen=True)
class Labelled:
    """Inputs with their classes; unpacks as ``x, y``.

    Args:
        x: Inputs, ``[rows, features]``.
        y: Classes, ``[rows]``.
    """

    x: Tensor
    y: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        """First the inputs, then the classes."""
        return iter((self.x, self.y))

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.x)


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows held out.

    Args:
        training: What the optimiser sees.
        held_out: What it never sees.
    """

    training: Labelled
    held_out: Labelled


def digits(seed: int = 0, held_out: int = 360) -> Split:
    """Load scikit-learn's 1797 handwritten digits and split them at random.

    The pixels are those of the data SPEC ``digits`` (fractions of 16), so that a network trained
    here can be analysed from the command line with ``--data digits``.

    Args:
        seed: Decides which rows are held out.
        held_out: How many rows are.

    Returns:
        The split; inputs are float32 ``[rows, 64]``.

    Raises:
        UsageError: scikit-learn is not installed, or no row would be left on one side.
    """
    if not 0 < held_out < _DIGITS:
        raise UsageError(
            f"held_out must lie between 1 and {_DIGITS - 1}, got {held_out}", "leave it at 360"
        )
    ((x, y),) = cast(
        Iterable[tuple[Tensor, Tensor]], load_data("digits", batch_size=_DIGITS, seed=seed)
    )
    rest = len(x) - held_out
    return Split(Labelled(x[:rest], y[:rest]), Labelled(x[rest:], y[rest:]))


def mlp(
    inputs: int,
    width: int,
    depth: int,
    outputs: int = 10,
    activation: Callable[[], nn.Module] = nn.Sigmoid,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Build a multilayer perceptron with Glorot's uniform weights and zero biases.

    Args:
        inputs: Features of one row.
        width: Neurons of each hidden layer.
        depth: Number of hidden layers.
        outputs: Classes.
        activation: Makes the module behind each hidden layer.
        seed: Decides the weights.
        dtype: Precision; torch's default where None.

    Returns:
        Linear maps and activations in turn, a linear map at the end: hidden layer ``l = 1, 2, ...``
        is the pair of modules ``2l − 2`` and ``2l − 1``.

    Raises:
        UsageError: A size is smaller than 1.

    Source:
        Glorot and Bengio, AISTATS 2010, Equation 16.
    """
    if min(inputs, width, depth, outputs) < 1:
        raise UsageError(
            f"every size must be at least 1, got {inputs}, {width}, {depth}, {outputs}",
            "give the numbers of inputs, neurons a layer, hidden layers and classes",
        )
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise([inputs, *[width] * depth, outputs]):
        layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=dtype)
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def train(
    model: nn.Module,
    data: Labelled,
    epochs: int,
    *,
    batch_size: int = 64,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    decay: float = 0.95,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train a classifier by stochastic gradient descent on the cross entropy, in place.

    The defaults are those of Kutsuna (ECML-PKDD 2019), Section 6.1, except for the batch size,
    which is 128 there.

    Args:
        model: Maps ``[rows, features]`` to ``[rows, classes]``; left in the mode it is in.
        data: What to train on.
        epochs: Passes over the data.
        batch_size: Rows a step.
        lr: Learning rate of the first epoch.
        momentum: Heavy-ball momentum.
        weight_decay: L2 penalty.
        decay: Factor of the learning rate from each epoch to the next.
        seed: Decides the order of the rows.
        progress: Called as ``progress(epochs done, epochs in all)``.

    Returns:
        Mean training loss of each epoch.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for epoch in range(epochs):
        order = torch.randperm(len(data), generator=generator)
        losses.append(_epoch(model, data, order.split(batch_size), optimizer))
        schedule.step()
        if progress is not None:
            progress(epoch + 1, epochs)
    return losses


def _epoch(
    model: nn.Module,
    data: Labelled,
    batches: tuple[Tensor, ...],
    optimizer: torch.optim.Optimizer,
) -> float:
    """One pass; the mean loss over its rows."""
    total = 0.0
    for rows in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data.x[rows]), data.y[rows])
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(rows)
    return total / len(data)
