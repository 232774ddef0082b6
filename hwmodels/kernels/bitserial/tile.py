"""The innermost kernel: binary dot products of a tile of output channels and pixels, as LLVM vector code.

For unsigned codes u = Σ_i 2^i·u_i and v = Σ_j 2^j·v_j, cut into bit planes, u·v = Σ_d 2^d Σ_{i+j=d} popcount(u_i & v_j)
(Umuroglu and Jahre 2017, Streamlined Deployment for Quantized Neural Networks, arXiv:1709.04060). The tile walks the
diagonals d upwards; a plan (`plan.py`) lists the pairs of words of each.

A lane holds one output channel. The words of a weight plane lie as `lanes × vectors` neighbours, one for each channel,
so that one load serves a vector; a word of an activation plane is broadcast to all lanes.

Two ways of counting ones:

- `group=1`: every ANDed word is counted at once. Best where counting is one instruction (AVX-512 VPOPCNTDQ, scalars).
- `group=8`: a tree of carry-save adders takes eight words and yields one to be counted with weight 8 (Harley–Seal;
  Muła, Kurz, Lemire 2018, Faster Population Counts Using AVX2 Instructions, arXiv:1611.07612). What stays in `ones` is
  counted once per diagonal; `twos` and `fours` have the weight of ones and twos on the next diagonal and move there
  uncounted.

LLVM does not fold the carry-save adder into `vpternlog` by itself, hence the intrinsic.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from haq.hwmodels.kernels.bitserial.epilogue import Arguments, compile_tile, write_output
from haq.hwmodels.kernels.bitserial.vectors import splat, vector_type

__all__ = ["TREE", "TileShape", "tile_function"]

TREE = 8
"""Words that one pass of the carry-save adder tree takes."""

_AVX512_LANES = 8
_WORD, _INT32 = ir.IntType(64), ir.IntType(32)
_MAJORITY, _PARITY = 0xE8, 0x96  # truth tables for `vpternlog`


class TileShape(NamedTuple):
    """The shape of a tile.

    Attributes:
        lanes: 64-bit lanes of a vector.
        vectors: Vectors of output channels.
        pixels: Output pixels.
        group: Words counted at a time, 1 or `TREE`.
    """

    lanes: int
    vectors: int
    pixels: int
    group: int

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.lanes * self.vectors


class _Vectors:
    """Emits operations on vectors of 64-bit lanes; with one lane they are plain integers."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.type = vector_type(_WORD, lanes)
        self.zero = ir.Constant(self.type, [0] * lanes if lanes > 1 else 0)

    def load(self, pointer: Any, index: int) -> Any:
        """Loads the vector that lies `index` vectors after `pointer`, which is only aligned to words."""
        pointer = self.builder.gep(pointer, [_WORD(index * self.lanes)])
        value = self.builder.load(self.builder.bitcast(pointer, self.type.as_pointer()))
        value.align = 8
        return value

    def splat(self, word: Any) -> Any:
        return splat(self.builder, word, self.lanes)

    def count(self, value: Any) -> Any:
        """Counts the ones of each lane."""
        return self._call(f"llvm.ctpop.{self._suffix}", value)

    def add_carry(self, x: Any, y: Any, z: Any) -> tuple[Any, Any]:
        """Adds three bits in every position: returns carry and sum."""
        if self.lanes == _AVX512_LANES:
            name = "llvm.x86.avx512.pternlog.q.512"
            return self._call(name, x, y, z, _INT32(_MAJORITY)), self._call(name, x, y, z, _INT32(_PARITY))
        b, half = self.builder, self.builder.xor(x, y)
        return b.or_(b.and_(x, y), b.and_(half, z)), b.xor(half, z)

    def narrow(self, value: Any) -> Any:
        """Returns the low 32 bits of each lane."""
        return self.builder.trunc(value, vector_type(_INT32, self.lanes))

    @property
    def _suffix(self) -> str:
        return f"v{self.lanes}i64" if self.lanes > 1 else "i64"

    def _call(self, name: str, *arguments: Any) -> Any:
        signature = ir.FunctionType(self.type, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, signature, name), arguments)


class _Cell:
    """The running count of one vector of channels at one pixel; LLVM keeps its variables in registers."""

    def __init__(self, vectors: _Vectors, group: int) -> None:
        self.vectors, self.group = vectors, group
        carries = 3 if group == TREE else 0  # ones, twos, fours
        new = cgutils.alloca_once_value
        self.carries = [new(vectors.builder, vectors.zero) for _ in range(carries)]
        self.total, self.counted = new(vectors.builder, vectors.zero), new(vectors.builder, vectors.zero)
        for variable in (*self.carries, self.total):  # the allocation moves to the function's entry, this does not
            vectors.builder.store(vectors.zero, variable)

    def begin_diagonal(self) -> None:
        self.vectors.builder.store(self.vectors.zero, self.counted)

    def absorb(self, words: list[Any]) -> None:
        """Takes `group` ANDed words."""
        b, add = self.vectors.builder, self.vectors.add_carry
        (whole,) = words if self.group == 1 else (None,)
        if self.group == TREE:
            ones, twos, fours = (b.load(variable) for variable in self.carries)
            pairs = []
            for first, second in zip(words[::2], words[1::2], strict=True):
                carry, ones = add(first, second, ones)
                pairs.append(carry)
            quads = []
            for first, second in zip(pairs[::2], pairs[1::2], strict=True):
                carry, twos = add(first, second, twos)
                quads.append(carry)
            whole, fours = add(quads[0], quads[1], fours)
            for value, variable in zip((ones, twos, fours), self.carries, strict=True):
                b.store(value, variable)
        b.store(b.add(b.load(self.counted), self.vectors.count(whole)), self.counted)

    def end_diagonal(self, diagonal: Any) -> None:
        b, v = self.vectors.builder, self.vectors
        self._add(b.load(self.counted), b.add(diagonal, _WORD(self.group.bit_length() - 1)))
        if self.carries:
            ones, twos, fours = self.carries
            self._add(v.count(b.load(ones)), diagonal)
            for lower, upper in ((ones, twos), (twos, fours)):
                b.store(b.load(upper), lower)
            b.store(v.zero, fours)

    def finish(self, diagonals: Any) -> Any:
        """Returns the sum, after the last diagonal."""
        b = self.vectors.builder
        for excess, variable in enumerate(self.carries[:2]):
            self._add(self.vectors.count(b.load(variable)), b.add(diagonals, _WORD(excess)))
        return b.load(self.total)

    def _add(self, count: Any, shift: Any) -> None:
        b = self.vectors.builder
        b.store(b.add(b.load(self.total), b.shl(count, self.vectors.splat(shift))), self.total)


def _emit(builder: Any, tile: Arguments, shape: TileShape, floating: bool) -> None:
    lanes, vectors, pixels, group = shape
    v = _Vectors(builder, lanes)
    byte, word, int32 = (ir.IntType(bits).as_pointer() for bits in (8, 64, 32))
    weights, planes = (builder.inttoptr(address, byte) for address in (tile.weights, tile.inputs))
    tables = (tile.w_offsets, tile.a_offsets, tile.counts)
    w_offsets, a_offsets, counts = (builder.inttoptr(address, int32) for address in tables)
    offsets = builder.inttoptr(tile.bases, word)
    bases = [builder.gep(planes, [builder.load(builder.gep(offsets, [_WORD(pixel)]))]) for pixel in range(pixels)]
    cells = [[_Cell(v, group) for _ in range(vectors)] for _ in range(pixels)]
    every = [cell for row in cells for cell in row]
    step = cgutils.alloca_once_value(builder, _WORD(0))
    builder.store(_WORD(0), step)

    def word_at(base: Any, table: Any, index: Any) -> Any:
        offset = builder.sext(builder.load(builder.gep(table, [index])), _WORD)
        return builder.bitcast(builder.gep(base, [offset]), word)

    with cgutils.for_range(builder, tile.diagonals) as walk:
        for cell in every:
            cell.begin_diagonal()
        count = builder.sext(builder.load(builder.gep(counts, [walk.index])), _WORD)
        with cgutils.for_range(builder, count):
            first = builder.load(step)
            steps = [builder.add(first, _WORD(k)) for k in range(group)]
            builder.store(builder.add(first, _WORD(group)), step)
            loaded = [word_at(weights, w_offsets, index) for index in steps]
            a_words = [[builder.load(word_at(base, a_offsets, index)) for index in steps] for base in bases]
            for vector in range(vectors):
                w_words = [v.load(pointer, vector) for pointer in loaded]
                for row, words in zip(cells, a_words, strict=True):
                    row[vector].absorb([builder.and_(x, v.splat(y)) for x, y in zip(w_words, words, strict=True)])
        for cell in every:
            cell.end_diagonal(walk.index)
    sums = [[v.narrow(cell.finish(tile.diagonals)) for cell in row] for row in cells]
    write_output(builder, tile, sums, lanes, floating)


@cache
def tile_function(shape: TileShape, floating: bool) -> Any:
    """Compiles a tile; see `compile_tile`.

    Its `weights` are one block from `pack_weights`, its `inputs` are bit planes, and its offsets and counts are from
    `pair_tables`.

    Args:
        shape: Shape of the tile.
        floating: Whether it writes float32 instead of int32.
    """
    return compile_tile(lambda builder, arguments: _emit(builder, arguments, shape, floating))
