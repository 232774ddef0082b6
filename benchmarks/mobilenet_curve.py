"""MobileNetV2 at 224×224, batch 16, on the BISMO overlays: HAQ's curve, and where edge and cloud rank layers apart.

The published curve is HAQ's (arXiv:1811.08886) table of uniform widths on its cloud accelerator, relative to 8 bits.

    python benchmarks/mobilenet_curve.py [--bits 8] [--layers 8]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import torch

from haq.hwmodels import LayerCost, get_hardware
from haq.layers import LayerSpec, trace
from haq.models import get_model
from haq.policy import LayerBits

PUBLISHED = (0.0867, 0.178, 0.280, 0.397, 0.528, 0.673, 0.830, 1.0)
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=8, choices=range(1, 9), help="uniform width of the ranking")
    parser.add_argument("--layers", type=int, default=8, help="layers of the ranking that are printed")
    options = parser.parse_args()
    layers = trace(get_model("mobilenet-v2"), torch.zeros(1, 3, 224, 224))
    print_curve(layers)
    print()
    print_ranks(layers, LayerBits(options.bits, options.bits), options.layers)


def print_curve(layers: Sequence[LayerSpec]) -> None:
    curves = {name: [latency_ms(name, layers, width) for width in range(1, 9)] for name in ("cloud", "edge", "ultra96")}
    print("| bits | published | cloud | error | edge | ultra96 |\n|---|---|---|---|---|---|")
    for index, published in enumerate(PUBLISHED):
        cloud, edge, ultra96 = (curve[index] / curve[-1] for curve in curves.values())
        print(
            f"| {index + 1} | {published:.4f} | {cloud:.4f} | {100 * (cloud / published - 1):+.1f} % | {edge:.4f} "
            f"| {ultra96:.4f} |"
        )
    print(f"\n8 bits: {', '.join(f'{name} {curve[-1]:.0f} ms' for name, curve in curves.items())}")


def latency_ms(name: str, layers: Sequence[LayerSpec], width: int) -> float:
    hardware = get_hardware(name)
    return sum(hardware.cost(layer, LayerBits(width, width), BATCH)["latency_ms"] for layer in layers)


def print_ranks(layers: Sequence[LayerSpec], bits: LayerBits, count: int) -> None:
    edge, cloud = (
        {layer.name: get_hardware(name).cost(layer, bits, BATCH) for layer in layers} for name in ("edge", "cloud")
    )
    edge_ranks, cloud_ranks = ranks(edge), ranks(cloud)
    kinds = {layer.name: layer.kind for layer in layers}
    print(f"Layers that edge and cloud rank furthest apart at {bits.w_bits} bits; 1 is the slowest of {len(layers)}\n")
    print("| layer | kind | edge | rank, bound | cloud | rank, bound |\n|---|---|---|---|---|---|")
    for name in sorted(edge, key=lambda name: -abs(edge_ranks[name] - cloud_ranks[name]))[:count]:
        cells = (
            f"{costs[name]['latency_ms']:.2f} ms | {places[name]}, {costs[name].bound}"
            for costs, places in ((edge, edge_ranks), (cloud, cloud_ranks))
        )
        print(f"| {name} | {kinds[name]} | {' | '.join(cells)} |")


def ranks(costs: Mapping[str, LayerCost]) -> dict[str, int]:
    return {name: rank for rank, name in enumerate(sorted(costs, key=lambda name: -costs[name]["latency_ms"]), 1)}


if __name__ == "__main__":
    main()
