"""How a convolution reads its input: patch means, unrolled kernels, norms at every pixel.

Per spatial dimension, one small table says how often each tap reads each position. All sums over
patches factor over the dimensions, so neither patches nor the sparse matrix are ever stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from shiftscope.errors import UsageError
from shiftscope.geometry.arguments import Padding, Size, each, pairs
from shiftscope.geometry.axis import Axis, table
from shiftscope.geometry.rows import row_facts
from shiftscope.tally.transfer import to_devices

__all__ = ["PatchMap"]

_MODES = ("zeros", "circular", "reflect", "replicate")
_IN, _OUT, _TAP, _TAP2 = "ijk", "xyz", "uvw", "rst"


@dataclass(frozen=True)
class PatchMap:
    """A convolution's reading of its input, in 1 to 3 dimensions; built by `PatchMap.of_conv`.

    Args:
        input_size: Input positions along each spatial dimension.
        kernel_size: Taps along each dimension.
        stride: Step along each dimension.
        padding: (left, right) along each dimension.
        dilation: Distance of neighbouring taps along each dimension.
        output_padding: Positions added at the far end of a transposed convolution's output.
        groups: Number of groups the channels are split into.
        transposed: Whether this is a transposed convolution.
        padding_mode: `zeros`, `circular`, `reflect` or `replicate`.
    """

    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    padding_mode: str = "zeros"

    @classmethod
    def of_conv(
        cls,
        input_size: Sequence[int],
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        output_padding: Size = 0,
        groups: int = 1,
        transposed: bool = False,
        padding_mode: str = "zeros",
    ) -> PatchMap:
        """Describe a convolution by the arguments of torch's own layers.

        Args:
            input_size: Input positions along each spatial dimension (no batch, no channels).
            kernel_size: Taps, one number or one for each dimension.
            stride: Likewise.
            padding: Likewise, or (left, right) pairs, or `same` or `valid`.
            dilation: Likewise.
            output_padding: Likewise; transposed convolutions only.
            groups: Number of groups.
            transposed: Whether this is a transposed convolution.
            padding_mode: `zeros`, `circular`, `reflect` or `replicate`.

        Returns:
            The checked description.

        Raises:
            UsageError: The arguments describe no convolution, or one without output.
        """
        n = len(input_size)
        taps, dil = each(kernel_size, n, "kernel_size"), each(dilation, n, "dilation")
        result = cls(
            tuple(int(s) for s in input_size),
            taps,
            each(stride, n, "stride"),
            pairs(padding, taps, dil),
            dil,
            each(output_padding, n, "output_padding"),
            groups,
            transposed,
            padding_mode,
        )
        result._check()
        return result

    @property
    def output_size(self) -> tuple[int, ...]:
        """Output positions along each spatial dimension."""
        sizes = []
        for d, pad in enumerate(self.padding):
            span = self.dilation[d] * (self.kernel_size[d] - 1)
            if self.transposed:
                full = (self.input_size[d] - 1) * self.stride[d] + span + 1
                sizes.append(full - sum(pad) + self.output_padding[d])
            else:
                sizes.append((self.input_size[d] + sum(pad) - span - 1) // self.stride[d] + 1)
        return tuple(sizes)

    def patch_mean(self, image: Tensor) -> Tensor:
        """Mean input patch μ̂ over all output positions, zero padding counted as zeros.

        Args:
            image: [C, *input_size] mean over the batch at every position.

        Returns:
            [groups, (C/groups)·taps] in float64, each row ordered as (channel, taps). With it
            `mean z_i = w_i·μ̂ + b_i` holds exactly over batch and positions.

        Raises:
            UsageError: The image has another size.

        Source: Kutsuna (ECML-PKDD 2019), Proposition 2, on the unrolled convolution.
        """
        if tuple(image.shape[1:]) != self.input_size or image.shape[0] % self.groups:
            raise UsageError(
                f"expected an image [C, {', '.join(map(str, self.input_size))}] with C a multiple "
                f"of {self.groups}, got {tuple(image.shape)}",
                "Give the batch mean of the convolution's own input.",
            )
        n = len(self.input_size)
        terms = [f"{_TAP[d]}{_IN[d]}" for d in range(n)]
        rule = f"c{_IN[:n]},{','.join(terms)}->c{_TAP[:n]}"
        counts = self._on(image.device, "by_input")
        patches = torch.einsum(rule, image.detach().double(), *counts) / prod(self.output_size)
        return patches.reshape(self.groups, -1)

    def unroll(self, weight: Tensor) -> Tensor:
        """Weight rows, one for each output channel.

        Args:
            weight: [C_out, C_in/groups, *kernel], or [C_in, C_out/groups, *kernel] if transposed.

        Returns:
            [C_out, (C_in/groups)·taps], each row ordered as (channel, taps); the weight's dtype.

        Raises:
            UsageError: The weight is not one of this convolution.
        """
        if tuple(weight.shape[2:]) != self.kernel_size or weight.shape[0] % self.groups:
            raise UsageError(
                f"expected a kernel of size {self.kernel_size} in {self.groups} group(s), got a "
                f"weight of shape {tuple(weight.shape)}",
                "Give the weight of the convolution that was described.",
            )
        if self.transposed:
            weight = self._exchanged(weight)
        return weight.flatten(1)

    def fold(self, rows: Tensor) -> Tensor:
        """Inverse of `unroll`.

        Args:
            rows: [C_out, (C_in/groups)·taps] weight rows.

        Returns:
            The weight as the convolution stores it.
        """
        weight: Tensor = rows.unflatten(1, (-1, *self.kernel_size))
        if self.transposed:
            weight = self._exchanged(weight)
        return weight

    def group_of_output(self, outputs: int, device: torch.device | str = "cpu") -> Tensor:
        """Group of each output channel.

        Args:
            outputs: Number of output channels.
            device: Where the result is to lie.

        Returns:
            [outputs] int64 indices.
        """
        return torch.arange(outputs, device=device) // max(1, outputs // self.groups)

    def reads(self, device: torch.device | str = "cpu") -> Tensor:
        """Number of output positions whose tap reads a real input position, not padding.

        Args:
            device: Where the result is to lie.

        Returns:
            [*kernel_size] float64 counts.
        """
        n = len(self.input_size)
        valid = [count.sum(1) for count in self._on(device, "by_input")]
        return torch.einsum(f"{','.join(_TAP[:n])}->{_TAP[:n]}", *valid)

    def xi_map(self, weight: Tensor) -> Tensor:
        """Backward variance gain ξ of every input element: squared norm of its matrix column.

        Args:
            weight: The convolution's weight, as it stores it.

        Returns:
            [C_in, *input_size] in float64.

        Raises:
            UsageError: The weight is not one of this convolution.

        Source: Kutsuna (ECML-PKDD 2019), Proposition 5, on the unrolled convolution.
        """
        rows = self.unroll(weight.detach())
        kernels = rows.reshape(self.groups, rows.shape[0] // self.groups, -1, self._taps)
        # [groups, out, in, taps] -> [in, out, taps]: each input channel meets its own group only.
        return self._norms(kernels.transpose(1, 2).flatten(0, 1), of_input=True)

    def eta_map(self, weight: Tensor) -> Tensor:
        """Forward variance gain η of every output element: squared norm of its matrix row.

        At the border of a zero-padded input the taps that fall outside are missing.

        Args:
            weight: The convolution's weight, as it stores it.

        Returns:
            [C_out, *output_size] in float64; sums up to the same as `xi_map`.

        Raises:
            UsageError: The weight is not one of this convolution.

        Source: Kutsuna (ECML-PKDD 2019), Proposition 4, on the unrolled convolution.
        """
        rows = self.unroll(weight.detach())
        return self._norms(rows.reshape(rows.shape[0], -1, self._taps), of_input=False)

    def mean_gains(self, weight: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means of `xi_map` and of `eta_map` over all elements, without either map.

        Args:
            weight: The convolution's weight, as it stores it.
            columns: Squared norms of the columns of the unrolled weight, if they are known.

        Returns:
            Two scalars in float64.

        Raises:
            UsageError: The weight is not one of this convolution.

        Source: both maps add up to the sum of squares of the unrolled matrix.
        """
        rows = self.unroll(weight.detach())
        inputs = rows.shape[1] // self._taps * self.groups
        if self.padding_mode == "zeros":
            squares = row_facts(rows).columns if columns is None else columns
            taps = squares.reshape(-1, *self.kernel_size).sum(0)
            total = (taps * self.reads(weight.device)).sum()
        else:
            total = self.xi_map(weight).sum()
        return (
            total / (inputs * prod(self.input_size)),
            total / (rows.shape[0] * prod(self.output_size)),
        )

    @property
    def _taps(self) -> int:
        return prod(self.kernel_size)

    def _norms(self, kernels: Tensor, of_input: bool) -> Tensor:
        """Squared norms at each position, of kernels [kept channel, summed channel, taps]."""
        n, keep = len(self.input_size), (_IN if of_input else _OUT)
        side = "by_input" if of_input else "by_output"
        if self.padding_mode == "zeros":
            squares = torch.stack([kernel.double().square().sum(0) for kernel in kernels])
            terms = ",".join(f"{_TAP[d]}{keep[d]}" for d in range(n))
            rule = f"c{_TAP[:n]},{terms}->c{keep[:n]}"
            tables = self._on(kernels.device, side)
            return torch.einsum(rule, squares.unflatten(1, self.kernel_size), *tables)
        # Wrapped or mirrored padding: two taps of one output may read the same element, and their
        # weights add before they are squared. The Gram matrix of the taps holds these products.
        gram = torch.stack([kernel.double().T @ kernel.double() for kernel in kernels])
        terms = ",".join(f"{_TAP[d]}{_TAP2[d]}{keep[d]}" for d in range(n))
        rule = f"c{_TAP[:n]}{_TAP2[:n]},{terms}->c{keep[:n]}"
        tables = self._on(kernels.device, f"pairs_{side}")
        return torch.einsum(rule, gram.reshape(-1, *self.kernel_size, *self.kernel_size), *tables)

    def _exchanged(self, weight: Tensor) -> Tensor:
        """A transposed convolution's weight with input and output channels exchanged."""
        parts = weight.reshape(self.groups, -1, *weight.shape[1:])
        return parts.transpose(1, 2).flatten(0, 1)

    def _on(self, device: torch.device | str, name: str) -> list[Tensor]:
        """One table for each dimension, as float64 on `device`."""
        tables = [torch.from_numpy(table(axis, name)) for axis in self._axes()]
        return to_devices(tables, [torch.device(device)] * len(tables))

    def _axes(self) -> list[Axis]:
        sizes = self.output_size
        return [
            Axis(
                inputs=self.input_size[d],
                outputs=sizes[d],
                taps=self.kernel_size[d],
                stride=self.stride[d],
                left=self.padding[d][0],
                dilation=self.dilation[d],
                transposed=self.transposed,
                padding_mode=self.padding_mode,
            )
            for d in range(len(sizes))
        ]

    def _check(self) -> None:
        if not 1 <= len(self.input_size) <= 3:
            raise UsageError(
                f"expected 1 to 3 spatial dimensions, got {len(self.input_size)}",
                "Give the size without batch and channels.",
            )
        if self.padding_mode not in _MODES or (self.transposed and self.padding_mode != "zeros"):
            raise UsageError(
                f"padding_mode {self.padding_mode!r} is not one this convolution can have",
                f"Use one of {', '.join(_MODES)}; a transposed convolution takes zeros only.",
            )
        numbers = (*self.kernel_size, *self.stride, *self.dilation, self.groups, *self.output_size)
        if min(numbers) < 1:
            raise UsageError(f"no output: {self}", "Give positive sizes, the kernel within them.")
