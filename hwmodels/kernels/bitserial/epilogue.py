"""The parts that all tiles share: how they are called, and how sums become the layer's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

from haq.hwmodels.kernels.bitserial.vectors import splat, vector_type

__all__ = ["Arguments", "Emit", "call_tile", "compile_tile", "write_output"]

_WORD, _INT32, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()


class Arguments(NamedTuple):
    """The arguments of a tile, all of them 64-bit addresses or numbers.

    Attributes:
        weights: Weights of one block of output channels.
        inputs: Activations of the block's group: bit planes, or codes.
        bases: int64 offset of each pixel's window in `inputs`, in bytes.
        w_offsets: int32 offset of each weight word, in bytes.
        a_offsets: int32 offset of each activation, in bytes.
        counts: int32 number of steps on each diagonal.
        diagonals: Number of diagonals, or of steps if there are no bit planes.
        doublings: How often the tile's sums are doubled.
        window: int32, the sum of each pixel's codes.
        window_stride: Bytes from one pixel's sum to the next.
        offset: int32, how often a window's sum is subtracted in each channel.
        constant: int32, subtracted in each channel.
        scale: float32 factor of each channel's accumulator.
        bias: float32, added in each channel.
        out: First channel of the first output pixel, int32 or float32.
        out_stride: Bytes from one output pixel to the next.
        channels: Channels to write; the tile may hold more.
        pixels: Pixels to write; the tile may hold more.
    """

    weights: Any
    inputs: Any
    bases: Any
    w_offsets: Any
    a_offsets: Any
    counts: Any
    diagonals: Any
    doublings: Any
    window: Any
    window_stride: Any
    offset: Any
    constant: Any
    scale: Any
    bias: Any
    out: Any
    out_stride: Any
    channels: Any
    pixels: Any


_COUNT = len(Arguments._fields)
_SIGNATURE = types.void(*[types.intp] * _COUNT)

Emit = Callable[[Any, Arguments], None]
"""`emit(builder, arguments)` writes the body of a tile."""


def compile_tile(emit: Emit) -> Any:
    """Compiles a tile; returns a callback that takes `Arguments`, whose code is at its `address`."""

    @intrinsic
    def body(  # type: ignore[no-untyped-def]
        typing, weights, inputs, bases, w_offsets, a_offsets, counts, diagonals, doublings, window, window_stride,
        offset, constant, scale, bias, out, out_stride, channels, pixels,
    ):  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emit(builder, Arguments(*values))
            return context.get_dummy_value()

        return _SIGNATURE, generate

    def tile(  # type: ignore[no-untyped-def]
        weights, inputs, bases, w_offsets, a_offsets, counts, diagonals, doublings, window, window_stride, offset,
        constant, scale, bias, out, out_stride, channels, pixels,
    ):  # fmt: skip
        body(
            weights, inputs, bases, w_offsets, a_offsets, counts, diagonals, doublings, window, window_stride, offset,
            constant, scale, bias, out, out_stride, channels, pixels,
        )  # fmt: skip

    return cfunc(_SIGNATURE)(tile)  # takes 0.1 s: numba's cache would save little, and would miss edits of `emit`


@intrinsic
def call_tile(  # type: ignore[no-untyped-def]
    typing, tile, weights, inputs, bases, w_offsets, a_offsets, counts, diagonals, doublings, window, window_stride,
    offset, constant, scale, bias, out, out_stride, channels, pixels,
):  # fmt: skip
    """Calls the tile at address `tile` with its `Arguments`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [_WORD] * _COUNT)
        builder.call(builder.inttoptr(values[0], function.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * (1 + _COUNT)), generate


def write_output(
    builder: Any, arguments: Arguments, sums: list[list[Any]], lanes: int, floating: bool, offset: bool = True
) -> None:
    """Emits (2^doublings · sum − offset · window − constant) · scale + bias in float32; in int32, no scale and bias.

    The arithmetic wraps around in 32 bits; this is exact, because the layer has checked that the accumulator fits.
    Sums are doubled by shifts, so that each output takes only one 32-bit product, which is slow on many CPUs.

    Args:
        builder: LLVM builder to emit into.
        arguments: Arguments of the tile.
        sums: int32 vectors, by pixel and by vector of channels; plain integers if `lanes` is 1.
        lanes: Channels in a vector.
        floating: Whether the output is float32.
        offset: Whether the sums are of unsigned weight codes; sums of weights need neither doublings nor window.
    """
    b = builder
    for pixel, row in enumerate(sums):
        with b.if_then(b.icmp_signed("<", _WORD(pixel), arguments.pixels), likely=True):
            if offset:
                window = b.load(_at(b, arguments.window, b.mul(arguments.window_stride, _WORD(pixel)), _INT32))
                total, doublings = (splat(b, x, lanes) for x in (window, b.trunc(arguments.doublings, _INT32)))
            for position, value in enumerate(row):
                first = position * lanes
                if offset:
                    missing = b.mul(_load(b, arguments.offset, first, _INT32, lanes), total)
                    value = b.sub(b.shl(value, doublings), missing)
                accumulator = b.sub(value, _load(b, arguments.constant, first, _INT32, lanes))
                if floating:
                    factor, bias = (_load(b, a, first, _FLOAT, lanes) for a in (arguments.scale, arguments.bias))
                    accumulator = b.fadd(b.fmul(b.sitofp(accumulator, factor.type), factor), bias)
                place = b.add(b.mul(arguments.out_stride, _WORD(pixel)), _WORD(4 * first))
                _store(b, accumulator, b.add(arguments.out, place), b.sub(arguments.channels, _WORD(first)), lanes)


def _store(builder: Any, value: Any, address: Any, wanted: Any, lanes: int) -> None:
    """Stores the first `wanted` lanes, which may be all or none."""
    b = builder
    with b.if_else(b.icmp_signed(">=", wanted, _WORD(lanes)), likely=True) as (whole, part):
        with whole:
            b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 4
        with part:
            kept = cgutils.alloca_once(b, value.type)
            b.store(value, kept)
            element = value.type.element if lanes > 1 else value.type
            source, target = b.ptrtoint(kept, _WORD), address
            with cgutils.for_range(b, wanted) as loop:
                offset = b.mul(loop.index, _WORD(4))
                b.store(b.load(_at(b, source, offset, element)), _at(b, target, offset, element))


def _load(builder: Any, address: Any, first: int, element: Any, lanes: int) -> Any:
    value = builder.load(_at(builder, address, _WORD(4 * first), vector_type(element, lanes)))
    value.align = 4
    return value


def _at(builder: Any, address: Any, offset: Any, pointed: Any) -> Any:
    return builder.inttoptr(builder.add(address, offset), pointed.as_pointer())
