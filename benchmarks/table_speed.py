"""How fast policies are priced, and how fast an analytic table is built.

python benchmarks/table_speed.py [--seed 0]
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from haq.hwmodels import CostTable, get_hardware, list_hardware
from haq.layers import LayerSpec

POLICIES = 100_000


def resnet50() -> list[LayerSpec]:
    """The layers of ResNet-50 at 224×224 (He et al. 2015, arXiv:1512.03385, table 1)."""
    layers: list[LayerSpec] = []

    def add(c_in: int, c_out: int, kernel: int, stride: int, size: int) -> None:
        out, params = size // stride, c_in * c_out * kernel**2
        layers.append(
            LayerSpec(
                f"layer{len(layers)}", "conv", c_in, c_out, (kernel, kernel), (stride, stride),
                (kernel // 2, kernel // 2), (1, 1), 1, (size, size), (out, out), out * out * params, params, 0,
            )
        )  # fmt: skip

    add(3, 64, 7, 2, 224)
    channels, size = 64, 56
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            stride = 2 if block == 0 and width > 64 else 1
            add(channels, width, 1, 1, size)
            add(width, width, 3, stride, size)
            if block == 0:
                add(channels, 4 * width, 1, stride, size)
            size //= stride
            add(width, 4 * width, 1, 1, size)
            channels = 4 * width
    layers.append(
        LayerSpec(
            "fc", "linear", 2048, 1000, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1), (1, 1), 2_048_000, 2_048_000, 1000
        )
    )
    return layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    rng = np.random.default_rng(parser.parse_args().seed)
    layers, bits = resnet50(), (1, 2, 3, 4, 5, 6, 7, 8, 16)
    print(f"ResNet-50, {len(layers)} layers\n")
    print("| hardware | pairs | table built in | policies a second |\n|---|---|---|---|")
    for name in list_hardware():
        start = time.perf_counter()
        table = CostTable.build(get_hardware(name), layers, bits, bits)
        built = time.perf_counter() - start
        pairs = np.array([(table.w_bits.index(p.w_bits or 0), table.a_bits.index(p.a_bits)) for p in table.pairs])
        chosen = pairs[rng.integers(len(pairs), size=(POLICIES, len(layers)))]
        start = time.perf_counter()
        table.totals("latency_ms", chosen[..., 0], chosen[..., 1])
        speed = POLICIES / (time.perf_counter() - start)
        print(f"| {name} | {len(pairs)} | {built * 1e3:.0f} ms | {speed:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
