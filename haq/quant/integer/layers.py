"""Layers and sums of an integer-only network, and its conversions from and to real numbers.

Activations are `(N, C, H, W)` in channels-last layout, because sums and their factors run along the channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers.kinds.lowering import Lowered
from haq.quant.integer.arithmetic import PRODUCT_BITS, Grid, Rescale, matmul
from haq.quant.integer.pooling import Window
from haq.quant.quantizers.functional import quantize_affine

__all__ = [
    "Dequantize",
    "IntegerConv2d",
    "IntegerLinear",
    "IntegerLowered",
    "LayerCodes",
    "Quantize",
    "WeightedSum",
]

_INT32_SUM = 2**30  # leaves room for the bias, and for codes whose zero point is subtracted afterwards
_SMALLEST_FACTOR = 1e-40  # replaces the factor of a channel whose batch norm multiplies by 0


class Quantize(nn.Module):
    """Real numbers → codes, at the start of the network."""

    scale: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("scale", torch.tensor(grid.scale, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Returns codes, same shape."""
        grid = self.grid
        zero = None if grid.zero_point is None else torch.tensor(grid.zero_point, dtype=torch.int32)
        codes = quantize_affine(x.float(), self.scale, grid.bits, grid.signed, zero, grid.rounding)
        return codes.to(grid.dtype)


class Dequantize(nn.Module):
    """Codes → float32 numbers, at the end of the network."""

    scale: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.zero = grid.zero
        self.register_buffer("scale", torch.tensor(grid.scale, dtype=torch.float32))

    def forward(self, codes: Tensor) -> Tensor:
        """Returns S·(q − Z), same shape."""
        return (codes.to(torch.int32) - self.zero) * self.scale


@dataclass(frozen=True, eq=False)
class LayerCodes:
    """Parts of an integer layer: y = factor·Σ weight·(x − Z) + constant.

    Attributes:
        weight: Codes minus their zero point, `(M, …)`.
        factor: Real value of one unit of the sum, `(M,)` float64; negative if a batch norm flips the sign.
        constant: Bias with the batch norm's shift, `(M,)` float64.
        inputs: Grid of x.
        outputs: Grid of y.
        clip: Smallest and largest code of y.
    """

    weight: Tensor
    factor: Tensor
    constant: Tensor
    inputs: Grid
    outputs: Grid
    clip: tuple[int, int]


class _IntegerLayer(nn.Module):
    """Sums of products, plus a bias, rescaled (Jacob et al. 2018, eq. 4 and 7, and section 2.4).

    Sums are int32. The conversion checks from the weights' codes and the width of x that they cannot overflow:
    |Σ w·(x − Z)| ≤ Σ|w| · max|x − Z|. A layer whose sums could overflow gets int64, as in TensorFlow Lite's 16x8 mode:
    with 8-bit weights and 16-bit activations from a few hundred products on, with 8 and 8 bits above 30,000.

    The bias is an integer of the same width. The paper gives it the scale of the sums, S_w·S_x. At low widths this is
    coarser than a step of the output, so both are first shifted left by as many bits as are sure to fit: the bias has
    scale S_w·S_x·2^−k, with its own k for each channel. If a batch norm makes the sum negligible compared to the bias,
    k is negative.

    8-bit codes minus their zero point may need 9 bits. A matrix of them is stored as int8, minus the middle of each
    channel's range; the middle times the sum of x is added later. Intermediate sums may wrap around in int32, but the
    final ones fit, and arithmetic modulo 2^32 is exact.
    """

    weight: Tensor
    middle: Tensor | None
    correction: Tensor
    bias: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, codes: LayerCodes, weight: Tensor, as_matrix: bool) -> None:
        super().__init__()
        grid = codes.inputs
        self.zero, (low, high) = grid.zero, grid.range
        magnitude = codes.weight.flatten(1).to(torch.int64).abs().sum(1)
        bound = magnitude * max(high - self.zero, self.zero - low)
        largest = int(bound.max())
        self.sum_dtype = torch.int32 if largest < _INT32_SUM else torch.int64
        sum_bits = 31 if self.sum_dtype == torch.int32 else largest.bit_length() + 2
        if sum_bits > PRODUCT_BITS - 16:
            raise ModelError(f"sums of {sum_bits} bits leave no room for a factor; lower the layer's widths")
        middle = _middle(weight) if as_matrix and self.sum_dtype == torch.int32 else None
        if middle is not None:
            weight = (weight - middle[:, None]).to(torch.int8)
        narrow = as_matrix and weight.dtype == torch.int8 and self.sum_dtype == torch.int32
        self.code_dtype = torch.int8 if narrow and grid.dtype in (torch.int8, torch.uint8) else self.sum_dtype
        self.offset = 128 if self.code_dtype == torch.int8 and grid.dtype == torch.uint8 else 0

        factor = torch.where(codes.factor.abs() < _SMALLEST_FACTOR, _SMALLEST_FACTOR, codes.factor)
        bias = codes.constant / factor
        spare = torch.floor(sum_bits - 1 - torch.log2((bound + bias.abs()).clamp_min(1)))
        spare = spare.clamp_max(sum_bits - 1)
        total = torch.zeros_like(spare, dtype=self.sum_dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("middle", middle)
        # Eq. 7: the zero point of x, minus the offset already subtracted from its codes, times the sum of the weights
        shift = (self.offset - self.zero) * codes.weight.flatten(1).sum(1, dtype=torch.int64)
        self.register_buffer("correction", total + shift.to(self.sum_dtype))
        self.register_buffer("bias", torch.round(torch.ldexp(bias, spare)).to(self.sum_dtype))
        self.register_buffer("left", spare.clamp_min(0).to(self.sum_dtype))
        self.register_buffer("right", (-spare).clamp(0, sum_bits).to(self.sum_dtype))
        factors = torch.ldexp(factor, -spare) / codes.outputs.scale
        self.rescale = Rescale(factors[None], codes.outputs, codes.clip, sum_bits)

    def finish(self, sums: Tensor) -> Tensor:
        """Returns codes from raw sums `(..., M)`."""
        sums += self.correction
        if bool(self.right.any()):
            sums += torch.where(self.right > 0, 1 << (self.right - 1).clamp_min(0), 0).to(self.sum_dtype)
            sums >>= self.right
        sums <<= self.left
        sums += self.bias
        codes: Tensor = self.rescale(sums)
        return codes

    def product(self, rows: Tensor, weight: Tensor, middle: Tensor | None) -> Tensor:
        """Returns sums for some of the channels.

        Args:
            rows: Codes from `narrow`, `(rows, n)`.
            weight: Weights of these channels, `(channels, n)`.
            middle: Middles of these channels, `(channels,)`, if they were subtracted from the weights.

        Returns:
            Sums, `(rows, channels)`.
        """
        sums = matmul(rows, weight, self.sum_dtype)
        return sums if middle is None else sums.addcmul_(rows.sum(1, dtype=self.sum_dtype)[:, None], middle)

    def narrow(self, x: Tensor) -> Tensor:
        """Returns codes minus the offset, in the type used for the product."""
        return x.view(torch.int8) ^ -128 if self.offset else x.to(self.code_dtype)  # flipping the top bit subtracts 128


class IntegerLinear(_IntegerLayer):
    """Codes `(..., in)` → codes `(..., out)`."""

    def __init__(self, codes: LayerCodes) -> None:
        super().__init__(codes, codes.weight, as_matrix=True)

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies by the weights and rescales."""
        rows = self.narrow(x.reshape(-1, x.shape[-1]).contiguous())
        return self.finish(self.product(rows, self.weight, self.middle)).reshape(*x.shape[:-1], -1)


class IntegerConv2d(_IntegerLayer):
    """Codes `(N, C, H, W)` → codes `(N, M, H', W')`, padded with the zero point.

    A dense or grouped convolution multiplies its windows as a matrix; a depthwise one adds up its kernel's positions.

    Args:
        codes: Weights, factors and grids.
        window: Kernel, stride, dilation and padding.
        groups: Groups of the convolution.
    """

    def __init__(self, codes: LayerCodes, window: Window, groups: int) -> None:
        depthwise = codes.weight.shape[1] == 1 and groups > 1
        taps = codes.weight.permute(0, 2, 3, 1).flatten(1)  # (M, kernel_h · kernel_w · C / groups)
        super().__init__(codes, (taps.t() if depthwise else taps).contiguous(), as_matrix=not depthwise)
        self.depthwise, self.window, self.groups = depthwise, window, groups

    def forward(self, x: Tensor) -> Tensor:
        """Convolves and rescales."""
        sums = self._depthwise(x) if self.depthwise else self._dense(x)
        return self.finish(sums).permute(0, 3, 1, 2)

    def _dense(self, x: Tensor) -> Tensor:
        windows = self.window.of(self.narrow(self.window.pad(x, self.zero)))
        shape = windows.shape[:3]
        middles = [None] * self.groups if self.middle is None else self.middle.chunk(self.groups)
        parts = [
            self.product(part.reshape(shape.numel(), -1), weight, middle)
            for part, weight, middle in zip(
                windows.chunk(self.groups, 5), self.weight.chunk(self.groups), middles, strict=True
            )
        ]
        return (parts[0] if self.groups == 1 else torch.cat(parts, 1)).view(*shape, -1)

    def _depthwise(self, x: Tensor) -> Tensor:
        weight = self.weight.to(self.sum_dtype)
        channels = weight.shape[1]
        if channels > self.groups:
            x = x.repeat_interleave(channels // self.groups, 1)
        windows = self.window.of(self.narrow(self.window.pad(x, self.zero)))
        sums = torch.zeros(*windows.shape[:3], channels, dtype=self.sum_dtype)
        for tap, values in enumerate(weight):
            sums.addcmul_(windows[:, :, :, tap // self.window.kernel[1], tap % self.window.kernel[1]], values)
        return sums


class IntegerLowered(nn.Module):
    """Codes `(N, C, …)` → codes `(N, M, …)`: a layer that is computed as a convolution in two dimensions."""

    def __init__(self, conv: Lowered, inner: IntegerConv2d) -> None:
        super().__init__()
        self._conv, self.inner = conv, inner

    def forward(self, x: Tensor) -> Tensor:
        """Convolves and rescales."""
        return self._conv.leave(self.inner(self._conv.enter(x, self.inner.zero)))


def _middle(weight: Tensor) -> Tensor | None:
    """Returns the middle to subtract from each channel of `(M, n)` so that it fits int8, as int32 `(M,)`.

    Returns `None` if the weights are already int8, or do not fit even then.
    """
    if weight.dtype == torch.int8:
        return None
    low, high = weight.aminmax(dim=1)
    return low + 128 if int((high - low).max()) <= 255 else None


class WeightedSum(nn.Module):
    """Adds values on symmetric grids; with one term it only changes the grid.

    Terms are brought to one scale in 64 bits, and added before the only rounding (Jacob et al. 2018, appendix A.2).

    Args:
        inputs: Grid of each term.
        outputs: Grid of the sum.
        clip: Smallest and largest code of the sum; by default the grid's range.
    """

    def __init__(self, inputs: tuple[Grid, ...], outputs: Grid, clip: tuple[int, int] | None = None) -> None:
        super().__init__()
        factors = torch.tensor([[grid.scale / outputs.scale] for grid in inputs], dtype=torch.float64)
        self.rescale = Rescale(factors, outputs, clip, max(grid.bits for grid in inputs))

    def forward(self, *terms: Tensor) -> Tensor:
        """Returns codes of the sum; the shapes of the terms broadcast."""
        codes: Tensor = self.rescale(*terms)
        return codes
