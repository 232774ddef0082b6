"""Policies searched for one piece of hardware, on the others: HAQ's table 1 with accelerators and this machine.

    python benchmarks/transfer.py --data npz:cifar10 --weights resnet20-cifar10.pt --cpu cpu.parquet [--share 40]

For every piece of hardware a policy is searched whose latency there is at most a share of the uniform 8-bit network's.
Then it is priced on all of them, again as a share of uniform 8 bits. Where hardware cannot run a pair of widths, it is
deployed at the next wider one that it can.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from haq.config import SearchConfig
from haq.hwmodels import CostTable
from haq.hwmodels.pricing import open_hardware
from haq.policy import BitPolicy, LayerBits
from haq.runs import Best, RunFolder
from haq.search import run

WIDTHS = tuple(range(1, 9))


def runnable(policy: BitPolicy, table: CostTable) -> BitPolicy:
    """Returns the policy at the narrowest widths that the table prices and that are no narrower."""

    def wider(bits: LayerBits) -> LayerBits:
        w_bits, a_bits = bits.w_bits or 8, bits.a_bits or 8
        return min(
            (pair for pair in table.pairs if (pair.w_bits or 0) >= w_bits and (pair.a_bits or 0) >= a_bits),
            key=lambda pair: (pair.w_bits or 0) + (pair.a_bits or 0),
        )

    return BitPolicy({name: wider(bits) for name, bits in policy.items()}, policy.scheme)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="npz:cifar10")
    parser.add_argument("--weights", default="resnet20-cifar10.pt", help="of ResNet-20")
    parser.add_argument("--cpu", default="resnet20-cpu.parquet", help="table from haq measure")
    parser.add_argument("--hardware", nargs="+", default=["edge", "cloud", "bitfusion"])
    parser.add_argument("--share", type=int, default=40, help="percent of uniform 8-bit latency")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--finetune-steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    hardware = [*options.hardware, options.cpu]
    found: dict[str, Best] = {}
    for name in hardware:
        config = SearchConfig(
            (f"latency={options.share}%",), "resnet20", options.weights, options.data, name, open_hardware(name).batch,
            trials=options.trials, qat_steps=0, finetune_steps=options.finetune_steps, seed=options.seed,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            result: RunFolder = run(**config.options(), out=Path(folder) / "run")
            found[name], layers = result.read_best(), result.read_layers()

    pricings = {name: open_hardware(name) for name in hardware}
    tables = {name: pricing.price(layers, WIDTHS, pricing.batch) for name, pricing in pricings.items()}
    shown = {name: Path(name).stem for name in hardware}
    print(f"| searched for | {' | '.join(f'latency on {name}' for name in shown.values())} | size | test top-1 |")
    print("|---" * (len(hardware) + 3) + "|")
    for name, best in found.items():
        cells = []
        for table in tables.values():
            uniform = table.cost(BitPolicy.uniform(list(table.layers), 8))["latency_ms"]
            cells.append(f"{table.cost(runnable(best.policy, table))['latency_ms'] / uniform:.1%}")
        size = best.cost["size_bytes"] or 0.0
        print(f"| {shown[name]} | {' | '.join(cells)} | {size / 1e3:.0f} kB | {best.test_top1:.4f} |", flush=True)


if __name__ == "__main__":
    main()
