"""Windows over integer feature maps, and pooling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.errors import ModelError
from haq.quant.integer.arithmetic import Grid, Rescale

__all__ = ["Average", "MaxPool", "Window"]


@dataclass(frozen=True)
class Window:
    """Window of a convolution or pooling; pairs are (vertical, horizontal).

    Attributes:
        kernel: Size of the window.
        stride: Distance between windows.
        dilation: Distance between values within a window.
        padding: Left, right, top and bottom, in the order of `torch.nn.functional.pad`.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def pad(self, x: Tensor, code: int) -> Tensor:
        """Returns `x` with a border of `code`."""
        return F.pad(x, self.padding, value=code) if any(self.padding) else x

    def of(self, x: Tensor) -> Tensor:
        """Returns the windows of a padded feature map `(N, C, H, W)` as a view `(N, H', W', kernel_h, kernel_w, C)`."""
        n, c, *size = x.shape
        rows, columns = (
            (length - d * (k - 1) - 1) // s + 1
            for length, k, s, d in zip(size, self.kernel, self.stride, self.dilation, strict=True)
        )
        by_n, by_c, by_h, by_w = x.stride()
        (sh, sw), (dh, dw) = self.stride, self.dilation
        return x.as_strided(
            (n, rows, columns, *self.kernel, c), (by_n, by_h * sh, by_w * sw, by_h * dh, by_w * dw, by_c)
        )


class Average(nn.Module):
    """Average pooling of values on a symmetric grid; the division is part of the rescaling.

    Args:
        window: Window to average over; `None` for all positions.
        size: Of the feature map; a global average divides by their product.
        keepdim: Whether a global average is `(N, C, 1, …)` instead of `(N, C)`.
        inputs: Grid of the values.
        outputs: Grid of the average.
        clip: Smallest and largest code of the average.
    """

    def __init__(
        self,
        window: Window | None,
        size: tuple[int, ...],
        keepdim: bool,
        inputs: Grid,
        outputs: Grid,
        clip: tuple[int, int],
    ) -> None:
        super().__init__()
        self.window, self.size, self.keepdim = window, size, keepdim
        count = math.prod(window.kernel if window else size)
        sum_bits = inputs.bits + count.bit_length()
        self.sum_dtype = torch.int32 if sum_bits <= 31 else torch.int64
        factor = torch.tensor([[inputs.scale / count / outputs.scale]], dtype=torch.float64)
        self.rescale = Rescale(factor, outputs, clip, max(sum_bits, 31))

    def forward(self, x: Tensor) -> Tensor:
        """Returns codes of the averages.

        Raises:
            ModelError: A global average gets a feature map of another size than at conversion.
        """
        if self.window:
            sums = self.window.of(self.window.pad(x, 0)).sum((3, 4), dtype=self.sum_dtype).permute(0, 3, 1, 2)
        elif x.shape[2:] != self.size:
            raise ModelError(
                f"global average of {tuple(x.shape[2:])} values, but the network was converted for {self.size}; "
                "convert it with batches of this image size"
            )
        else:
            sums = x.sum(tuple(range(2, x.dim())), keepdim=self.keepdim, dtype=self.sum_dtype)
        codes: Tensor = self.rescale(sums)
        return codes


class MaxPool(nn.Module):
    """Max pooling of codes, padded with the smallest code."""

    def __init__(self, window: Window, grid: Grid) -> None:
        super().__init__()
        self.window, self.lowest = window, grid.range[0]

    def forward(self, x: Tensor) -> Tensor:
        """Returns codes `(N, C, H', W')`."""
        return self.window.of(self.window.pad(x, self.lowest)).amax((3, 4)).permute(0, 3, 1, 2)
