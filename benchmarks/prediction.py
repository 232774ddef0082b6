"""Predicted against measured latency on this machine, for uniform and for random policies of one network.

    python benchmarks/prediction.py --data npz:cifar10 --weights resnet20-cifar10.pt [--random 20] [--seed 0]

Measures a table at all 64 pairs of widths first (or reads one, --table), then runs every policy on the kernels.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from haq.data import get_data
from haq.hwmodels import CostTable
from haq.hwmodels.kernels.deployment import deploy
from haq.hwmodels.measuring import Plan, measure
from haq.hwmodels.measuring.bench import bench, int8_network
from haq.layers import trace
from haq.models import load_model
from haq.policy import BitPolicy, LayerBits
from haq.quant import prepare

WIDTHS = tuple(range(1, 9))


def policies(names: list[str], count: int, seed: int) -> dict[str, BitPolicy]:
    """Uniform 8, 4 and 2 bits, and `count` random ones."""
    rng = np.random.default_rng(seed)
    chosen = {f"uniform {bits}": BitPolicy.uniform(names, bits) for bits in (8, 4, 2)}
    for number in range(count):
        # The first layer reads signed values, which need 2 bits
        widths = [(int(rng.integers(1, 9)), int(rng.integers(1 + (name == names[0]), 9))) for name in names]
        layers = {name: LayerBits(w, a) for name, (w, a) in zip(names, widths, strict=True)}
        chosen[f"random {number + 1}"] = BitPolicy(layers)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="npz:cifar10")
    parser.add_argument("--weights", default="resnet20-cifar10.pt", help="of ResNet-20")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    images = get_data(options.data, 1000, options.seed)
    model = load_model("resnet20", options.weights, images.num_classes, 3)
    sample = images.test.batch([0])[0]
    layers = trace(model, sample)
    if options.table:
        table = CostTable.load(options.table)
    else:
        with tempfile.TemporaryDirectory() as folder:
            plan = Plan(layers, WIDTHS, WIDTHS, repeats=options.repeats, seed=options.seed)
            table = measure(plan, model, sample, Path(folder) / "partial", lambda done, total: None)
    int8 = int8_network(model, [x for x, _ in images.train.subset(range(256)).batches(64)])
    print(f"{table.provenance['device']} ({table.provenance['features']}), {table.version}\n")
    print("| policy | predicted | measured | error | against float32 | against int8 |\n|---|---|---|---|---|---|")
    predicted, measured = [], []
    for name, policy in policies([layer.name for layer in layers], options.random, options.seed).items():
        deployed = deploy(prepare(model, policy), sample)
        result = bench(deployed, model, policy, table, sample, repeats=options.repeats, int8=int8)
        predicted.append(result.predicted_total)
        measured.append(result.total)
        beside = f"{result.int8 / result.total:.2f}×" if result.int8 else "–"
        print(
            f"| {name} | {result.predicted_total:.3f} ms | {result.total:.3f} ms | {result.error:+.1%} | "
            f"{result.float32 / result.total:.2f}× | {beside} |",
            flush=True,
        )
    rank = spearmanr(predicted[3:], measured[3:]).statistic
    errors = np.abs(np.array(predicted) / np.array(measured) - 1)
    print(f"\nSpearman, {options.random} random policies: {rank:.3f}; |error|: mean {errors.mean():.1%}, ", end="")
    print(f"largest {errors.max():.1%}")


if __name__ == "__main__":
    main()
