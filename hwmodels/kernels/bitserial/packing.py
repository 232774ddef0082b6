"""From real numbers to codes, and from codes to bit planes."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from haq.compiling import jit
from haq.hwmodels.kernels.bitserial.cpu import cpu_features
from haq.hwmodels.kernels.bitserial.plan import WORD_BITS, Layout
from haq.hwmodels.kernels.bitserial.vectors import splat

__all__ = ["SLACK", "pack", "pack_weights", "quantize"]

SLACK = WORD_BITS
"""Bytes after the codes, which packing may read and ignores."""


def _chunk() -> int:
    """Returns how many bytes one comparison turns into bits: a whole vector, or LLVM would take them one by one."""
    features = cpu_features()
    return 64 if "avx512bw" in features else 32 if "avx2" in features else 16


@intrinsic
def _gather_bit(typing, address, bit):  # type: ignore[no-untyped-def]
    """Gathers bit number `bit` of the 64 bytes at `address` into a word; the first byte's becomes the lowest bit."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        size = _chunk()
        byte, word = ir.IntType(8), ir.IntType(64)
        vector, bits = ir.VectorType(byte, size), ir.IntType(size)
        mask = splat(builder, builder.shl(byte(1), builder.trunc(arguments[1], byte)), size)
        gathered = word(0)
        for start in range(0, WORD_BITS, size):
            pointer = builder.inttoptr(builder.add(arguments[0], word(start)), vector.as_pointer())
            codes = builder.load(pointer)
            codes.align = 1
            present = builder.icmp_unsigned("!=", builder.and_(codes, mask), ir.Constant(vector, [0] * size))
            part = builder.bitcast(present, bits)
            part = builder.zext(part, word) if size < WORD_BITS else part
            gathered = builder.or_(gathered, builder.shl(part, word(start)))
        return gathered

    return types.uint64(types.intp, types.intp), generate


@intrinsic
def _count(typing, word):  # type: ignore[no-untyped-def]
    """Counts the ones of a word."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@jit
def quantize(
    x: NDArray[np.float32],
    codes: NDArray[np.uint8],
    inverse: np.float32,
    zero_point: np.float32,
    highest: np.float32,
    top: int,
    left: int,
) -> None:
    """Writes clip(round(x / S) + Z, 0, 2^bits − 1), ties to even, into the middle of padded codes.

    The result is that of `haq.quant.quantizers.functional.quantize_affine`: clipping before rounding changes nothing,
    because the bounds are integers. NaN gets code 0.

    Args:
        x: `(N, H, W · C)`.
        codes: `(N, H + 2 · top, (W + padding) · C)`.
        inverse: 1 / S.
        zero_point: Z.
        highest: 2^bits − 1.
        top: First row to write.
        left: First column to write.
    """
    lower, upper = -zero_point, highest - zero_point
    width = x.shape[2]
    for image in range(x.shape[0]):
        for row in range(x.shape[1]):
            source, target = x[image, row], codes[image, row + top, left : left + width]
            for i in range(width):
                value = source[i] * inverse
                value = value if value > lower else lower  # false for NaN
                value = value if value < upper else upper
                target[i] = np.uint8(np.int32(np.rint(value) + zero_point))


@jit
def pack(
    codes: NDArray[np.uint8],
    planes: NDArray[np.uint64],
    sums: NDArray[np.int32],
    rows: int,
    row_codes: int,
    step: int,
    run_length: int,
) -> None:
    """Splits the run of codes at every position into bit planes.

    Args:
        codes: Flat, with `SLACK` bytes after the last code.
        planes: `(positions, a_bits, words)`.
        sums: Sum of each run's codes; `(positions,)`.
        rows: Rows of the padded input, over the batch.
        row_codes: Codes of a row.
        step: Codes from one position to the next in a row.
        run_length: Codes of a run.
    """
    positions, a_bits, words = planes.shape
    per_row = positions // rows
    address = codes.ctypes.data
    tail = np.uint64(2**WORD_BITS - 1) >> np.uint64(words * WORD_BITS - run_length)
    for row in range(rows):
        for column in range(per_row):
            position = row * per_row + column
            start = address + row * row_codes + column * step
            total = np.uint64(0)
            for k in range(words):
                for plane in range(a_bits):
                    word = _gather_bit(start + k * WORD_BITS, plane)
                    if k == words - 1:
                        word &= tail
                    planes[position, plane, k] = word
                    total += _count(word) << np.uint64(plane)
            sums[position] = total


def pack_weights(codes: NDArray[np.uint8], layout: Layout, w_bits: int, channels: int) -> NDArray[np.uint64]:
    """Splits weight codes into bit planes, in blocks of as many output channels as a tile has.

    Args:
        codes: Unsigned, `(M, C / groups, kh, kw)`.
        layout: Layout of the layer.
        w_bits: Width of a code.
        channels: Output channels of a block; a group's last block is padded with zeros.

    Returns:
        `(groups · blocks, w_bits · words + 1, channels)`, with the words of all runs; the last word of a block is zero.
    """
    grouped = codes.reshape(layout.groups, -1, *codes.shape[1:]).transpose(0, 1, 3, 4, 2)
    per_group = grouped.shape[1]
    blocks = -(-per_group // channels)
    bits = np.zeros((layout.groups, blocks * channels, layout.runs, layout.words * WORD_BITS), np.uint8)
    bits[:, :per_group, :, : layout.run_length] = grouped.reshape(layout.groups, per_group, layout.runs, -1)
    planes = np.zeros((layout.groups * blocks, w_bits * layout.runs * layout.words + 1, channels), np.uint64)
    for i in range(w_bits):
        plane = np.packbits((bits >> i) & 1, axis=-1, bitorder="little").view("<u8")
        plane = plane.reshape(layout.groups * blocks, channels, -1).transpose(0, 2, 1)
        planes[:, i * plane.shape[1] : (i + 1) * plane.shape[1]] = plane
    return planes
