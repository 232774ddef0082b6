"""What a bit-serial layer computes, independent of the kernel; checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from haq.errors import HardwareError
from haq.hwmodels.kernels.bitserial.plan import Layout
from haq.hwmodels.kernels.bitserial.products import WeightGrid

__all__ = ["Definition", "define"]

_MAX_BITS = 8
_INT32_MAX = np.iinfo(np.int32).max

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Definition:
    """A layer without its weights.

    Attributes:
        name: Name of the layer in error messages.
        w_bits: Width of the weights.
        a_bits: Width of the activations.
        grid: Grid of the weights.
        linear: Whether the layer is fully connected; it is then a convolution of 1×1.
        out_channels: Number of output channels, M.
        layout: How windows are read.
        a_zero_point: Activation code that stands for 0.
        a_scale: Step of the activations.
        scale: Factor of each output channel's accumulator, `(M,)`.
        bias: Added to each output channel, `(M,)`.
        largest: Bound on the magnitude of any partial sum of an accumulator; it fits into int32.
    """

    name: str
    w_bits: int
    a_bits: int
    grid: WeightGrid
    linear: bool
    out_channels: int
    layout: Layout
    a_zero_point: int
    a_scale: np.float32
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]
    largest: int

    @property
    def depthwise(self) -> bool:
        """Whether every input channel has exactly one filter, which reads no other channel."""
        return self.layout.groups > 1 and self.layout.channels == 1 and self.layout.groups == self.out_channels

    def out_size(self, shape: tuple[int, ...]) -> Pair:
        """Returns height and width of the output for an input of `(N, H, W, C)`, or 1 and N for one of `(N, K)`.

        Raises:
            HardwareError: The layer does not take inputs of that shape.
        """
        channels = self.layout.channels * self.layout.groups
        wanted = f"(N, {channels})" if self.linear else f"(N, H, W, {channels}), channels last"
        if len(shape) != (2 if self.linear else 4) or shape[-1] != channels or 0 in shape:
            raise self.error(f"input of shape {shape}; give {wanted}")
        height, width = self.layout.out_size((1, shape[0]) if self.linear else (shape[1], shape[2]))
        if min(height, width) < 1:
            raise self.error(
                f"kernel {self.layout.kernel} does not fit into an input of shape {shape}; give a larger one"
            )
        return height, width

    def error(self, message: str) -> HardwareError:
        """Returns an error that names the layer."""
        return HardwareError(f"layer {self.name!r}: {message}")


def define(
    codes: ArrayLike,
    w_bits: int,
    a_bits: int,
    signed_weights: bool = True,
    a_zero_point: int = 0,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    a_scale: float = 1.0,
    w_zero_points: ArrayLike | None = None,
    name: str = "layer",
) -> tuple[Definition, NDArray[np.int64]]:
    """Returns the layer that the arguments of `BitSerialLayer` define, and its weights, `(M, C / groups, kh, kw)`.

    All arguments are those of `BitSerialLayer`. Weights are the codes minus their zero points.

    Raises:
        HardwareError: An argument does not fit the others, or an accumulator could leave int32.
    """
    given = np.asarray(codes)
    try:
        weights, grid = _weights(given, w_bits, a_bits, signed_weights, w_zero_points, groups)
        channels, height, width = weights.shape[1:]
        layout = Layout(channels, (height, width), stride, padding, dilation, groups)
        largest = _largest(weights[0].size, w_bits, a_bits, a_zero_point, grid)
        _check_geometry(layout)
        with np.errstate(all="ignore"):
            inverse = np.float32(1) / np.float32(a_scale)
        if not (0 < inverse < math.inf):  # false for NaN
            raise HardwareError(f"a_scale={a_scale!r} must be positive, and it and its inverse finite in float32")
        scales = _per_channel("scale", scale, 1.0, len(weights))
        biases = _per_channel("bias", bias, 0.0, len(weights))
    except HardwareError as error:
        raise HardwareError(f"layer {name!r}: {error}") from None
    definition = Definition(
        name, w_bits, a_bits, grid, given.ndim == 2, len(weights), layout, a_zero_point, np.float32(a_scale), scales,
        biases, largest,
    )  # fmt: skip
    return definition, weights


def _weights(
    given: NDArray[Any], w_bits: int, a_bits: int, signed: bool, zero_points: ArrayLike | None, groups: int
) -> tuple[NDArray[np.int64], WeightGrid]:
    for what, bits in (("w_bits", w_bits), ("a_bits", a_bits)):
        if not 1 <= bits <= _MAX_BITS:
            raise HardwareError(f"{what}={bits}; bit-serial kernels take 1 to {_MAX_BITS}")
    if given.ndim not in (2, 4) or given.size == 0 or not np.issubdtype(given.dtype, np.integer):
        raise HardwareError(
            f"weights are {given.dtype} of shape {given.shape}; give integers, (M, K) or (M, C/groups, kh, kw)"
        )
    grid = WeightGrid.of(w_bits, signed, None if zero_points is None else _zero_points(zero_points, len(given)))
    low, high = grid.bounds(w_bits)
    least, most = int(given.min()), int(given.max())
    if least < low or most > high or ((given.astype(np.int64) - low) % grid.step).any():
        allowed = f"{low} or {high}" if grid.step == 2 else f"{low} to {high}"
        raise HardwareError(f"weights lie between {least} and {most}; w_bits={w_bits} allows {allowed}")
    if groups < 1 or len(given) % groups or (given.ndim == 2 and groups > 1):
        raise HardwareError(f"groups={groups} does not divide {len(given)} output channels of a convolution")
    weights = given.astype(np.int64)
    if grid.zero_points is not None:
        least, most = int(grid.zero_points.min()), int(grid.zero_points.max())
        if least < low or most > high:
            raise HardwareError(f"w_zero_points lie between {least} and {most}; w_bits={w_bits} allows {low} to {high}")
        weights -= grid.zero_points.reshape(-1, *[1] * (weights.ndim - 1))
    return (weights.reshape(*weights.shape, 1, 1) if weights.ndim == 2 else weights), grid


def _zero_points(given: ArrayLike, channels: int) -> NDArray[np.int64]:
    array = np.asarray(given)
    if array.shape != (channels,) or not np.issubdtype(array.dtype, np.integer):
        raise HardwareError(
            f"w_zero_points are {array.dtype} of shape {array.shape}; give an integer for each of {channels} output "
            "channels"
        )
    return array.astype(np.int64)


def _largest(reduction: int, w_bits: int, a_bits: int, a_zero_point: int, grid: WeightGrid) -> int:
    top = 2**a_bits - 1
    if not 0 <= a_zero_point <= top:
        raise HardwareError(f"a_zero_point={a_zero_point} is not a code of a_bits={a_bits}; give 0 to {top}")
    largest: int = reduction * grid.reach(w_bits) * max(a_zero_point, top - a_zero_point)
    if largest > _INT32_MAX:
        raise HardwareError(
            f"K={reduction} at w_bits={w_bits}, a_bits={a_bits} can sum up to {largest}, beyond int32; "
            f"choose lower widths or split the layer"
        )
    return largest


def _check_geometry(layout: Layout) -> None:
    for what, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
        if min(pair := getattr(layout, what)) < least or len(pair) != 2:
            raise HardwareError(f"{what}={pair} must be two numbers of at least {least}")


def _per_channel(what: str, values: ArrayLike | None, default: float, channels: int) -> NDArray[np.float32]:
    if values is None:
        return np.full(channels, default, np.float32)
    array = np.ascontiguousarray(values, np.float32)
    if array.shape != (channels,):
        raise HardwareError(f"{what} of shape {array.shape}; give one for each of {channels} output channels")
    return array
