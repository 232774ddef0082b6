"""Bit-serial layers against PyTorch's float and int8 ones, side by side in one process, on one thread.

python benchmarks/bitserial.py [--rounds 60] [--backend avx512] [--widths 1/1 2/2 4/4 8/8] [--seed 0]
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from haq.compiling import jit
from haq.hwmodels.kernels.bitserial import BitSerialLayer, backends

LIMIT = 282
"""Bit-MACs a cycle that two 512-bit ports allow with carry-save adders: 3.63 instructions for 512 of them. CPUs with
more ports, or with one instruction that counts the ones of a vector, exceed it."""

_ROUND_S = 2e-3  # of one candidate in one round: long enough for the timer, short enough to interleave
_CHAIN = 2_000_000

Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A layer: `kernel` of 0 is a matrix product of `pixels` rows, otherwise a convolution of `size`² pixels."""

    name: str
    out_channels: int
    channels: int
    kernel: int = 0
    size: int = 0
    pixels: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.out_channels * self.channels * (self.kernel**2 * self.size**2 if self.kernel else self.pixels)


CASES = (
    Case("GEMM 256×2304×196", 256, 2304, pixels=196),
    Case("GEMM 128×1152×784", 128, 1152, pixels=784),
    Case("GEMM 64×576×256", 64, 576, pixels=256),
    Case("FC 1000×1280", 1000, 1280),
    Case("conv 3×3, 64 channels, 8²", 64, 64, 3, 8),
    Case("conv 3×3, 128 channels, 8²", 128, 128, 3, 8),
    Case("conv 3×3, 64 channels, 16²", 64, 64, 3, 16),
    Case("conv 3×3, 32 channels, 16²", 32, 32, 3, 16),
    Case("conv 3×3, 16 channels, 32²", 16, 16, 3, 32),
)


@jit
def _chain(steps: int) -> int:
    """Runs `steps` shifts and as many additions, each waiting for the one before."""
    value = np.uint64(1)
    for _ in range(steps):
        value ^= value >> np.uint64(7)
        value += np.uint64(0x9E3779B97F4A7C15)
    return int(value)


def clock_ghz() -> float:
    """Returns the clock, from a chain of three dependent instructions of one cycle each."""
    _chain(1)
    return 3 * _CHAIN / min(seconds(lambda: _chain(_CHAIN), 1) for _ in range(20)) * 1e-9


def seconds(step: Step, repeats: int) -> float:
    """Returns the mean seconds of one call."""
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def torch_steps(case: Case, x: torch.Tensor) -> tuple[Step, Step]:
    """Returns PyTorch's float layer, and its int8 one from a float input to a quantized output."""
    kernel = (case.kernel, case.kernel) if case.kernel else ()
    weight = torch.randn(case.out_channels, case.channels, *kernel)
    quantized = torch.quantize_per_channel(
        weight, torch.full((len(weight),), 0.02), torch.zeros(len(weight), dtype=torch.long), 0, torch.qint8
    )
    ops, padding = torch.ops.quantized, [case.kernel // 2] * 2
    if case.kernel:
        filters = weight.contiguous(memory_format=torch.channels_last)
        packed, multiply = ops.conv2d_prepack(quantized, None, [1, 1], padding, [1, 1], 1), ops.conv2d
    else:
        packed, multiply = ops.linear_prepack(quantized, None), ops.linear

    def fp32() -> object:
        return F.conv2d(x, filters, padding=padding) if case.kernel else F.linear(x, weight)

    def int8() -> object:
        return multiply(torch.quantize_per_tensor(x, 0.01, 0, torch.quint8), packed, 0.5, 0)

    return fp32, int8


def bit_serial_step(case: Case, x: torch.Tensor, w_bits: int, a_bits: int, backend: str | None) -> Step:
    """Returns a bit-serial layer from a float input to a float output."""
    kernel = (case.kernel, case.kernel) if case.kernel else ()
    low, high = (-(2 ** (w_bits - 1)), 2 ** (w_bits - 1)) if w_bits > 1 else (0, 2)
    codes = np.random.default_rng(0).integers(low, high, (case.out_channels, case.channels, *kernel))
    scale = np.full(case.out_channels, 0.01)
    layer = BitSerialLayer(
        codes if w_bits > 1 else 2 * codes - 1, w_bits, a_bits, padding=(case.kernel // 2,) * 2, scale=scale,
        bias=scale, a_scale=1 / (2**a_bits - 1), backend=backend,
    )  # fmt: skip
    values = x.permute(0, 2, 3, 1).contiguous().numpy() if case.kernel else x.numpy()
    return lambda: layer(values)


def measure(case: Case, widths: list[tuple[int, int]], backend: str | None, rounds: int) -> list[float]:
    """Returns the median seconds of the float layer, the int8 one and the bit-serial ones."""
    shape = (1, case.channels, case.size, case.size) if case.kernel else (case.pixels, case.channels)
    x = torch.rand(shape)
    x = x.contiguous(memory_format=torch.channels_last) if case.kernel else x
    steps = [*torch_steps(case, x), *(bit_serial_step(case, x, *pair, backend) for pair in widths)]
    repeats = []
    for step in steps:
        seconds(step, 3)
        repeats.append(max(1, int(_ROUND_S / seconds(step, 3))))
    samples = [[seconds(step, n) for step, n in zip(steps, repeats, strict=True)] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*samples, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--backend", choices=backends(), default=backends()[0])
    parser.add_argument("--widths", nargs="+", default=["1/1", "2/2", "4/4", "8/8"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore", message=".*quantize")  # eager quantization is deprecated, and has no rival here
    widths = [(int(w), int(a)) for w, a in (pair.split("/") for pair in options.widths)]

    clock = clock_ghz()
    print(
        f"Backend {options.backend}, one thread at {clock:.2f} GHz, batch 1, medians of {options.rounds} interleaved "
        "rounds. Included: for bit-serial layers quantizing and packing the float input, and the float output; for "
        "PyTorch's int8 quantizing the float input, but not converting its quantized output to float. Each cell: "
        f"speed relative to fp32 / relative to int8 / share of {LIMIT} bit-MACs a cycle. In brackets: MACs a cycle.\n"
    )
    print(f"| layer | fp32 | int8 | {' | '.join(options.widths)} |")
    print("|---" * (3 + len(widths)) + "|")
    for case in CASES:
        fp32, int8, *found = measure(case, widths, options.backend, options.rounds)
        cells = []
        for (w_bits, a_bits), taken in zip(widths, found, strict=True):
            share = case.macs * w_bits * a_bits / (taken * clock * 1e9) / LIMIT
            cells.append(f"{fp32 / taken:.2f} / {int8 / taken:.2f} / {share:.0%}")
        rivals = (f"{taken * 1e6:.0f} µs ({case.macs / (taken * clock * 1e9):.0f})" for taken in (fp32, int8))
        print(f"| {case.name} | {' | '.join([*rivals, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
