"""Searches for a device of your own, as a script with cells; the latencies come from a simulator or measurements.

    python examples/own_table.py

Replace `latency_ms` with the latencies of your device; keep the rest. `--smoke` searches at the smallest scale.
"""

# %% Arguments
from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pandas as pd

from haq.cli.main import cli
from haq.layers import LayerSpec, trace
from haq.runs.project import open_network

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="digits-resnet", help="as in haq search")
parser.add_argument("--data", default="digits", help="as in haq search")
parser.add_argument("--out", default="runs/own-table", type=Path, help="folder for the results")
parser.add_argument("--smoke", action="store_true", help="run at the smallest scale")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)


def haq(line: str) -> None:
    """Runs a command as a shell would."""
    cli.main(shlex.split(line), prog_name="haq", standalone_mode=False)


# %% The layers that the table needs, with the names that it must use
network, data = open_network(args.model, None, args.data, val_images=100, seed=0, trained=False)
layers = trace(network, data.train.batch([0])[0])
for layer in layers:
    print(layer.name, layer.kind, f"{layer.macs:,} multiply-accumulates")


# %% The latency of your device: here, a device with an 8-bit and a 4-bit mode that loads weights over a narrow bus
def latency_ms(layer: LayerSpec, w_bits: int, a_bits: int) -> float:
    """Returns the latency of a layer for one image, in milliseconds."""
    macs_per_ms = 64_000 if max(w_bits, a_bits) == 8 else 128_000
    bits_per_ms = 100_000
    return layer.macs / macs_per_ms + layer.params * w_bits / bits_per_ms


PAIRS = ((4, 4), (4, 8), (8, 8))  # supported pairs: weights, activations
rows = [
    {"layer": layer.name, "w_bits": w_bits, "a_bits": a_bits, "latency_ms": latency_ms(layer, w_bits, a_bits)}
    for layer in layers
    for w_bits, a_bits in PAIRS
]

# %% The table: a few header lines above a CSV
table = args.out / "my-device.csv"
facts = {"hardware": "my-device", "batch": 1, "origin": "modelled", "version": "example 1"}
header = "".join(f"# {key}: {value}\n" for key, value in facts.items())
table.write_text(header + pd.DataFrame(rows).to_csv(index=False))

# %% Check that the table is complete and belongs to this network; a mistake is reported in one line
haq(f"table {table} --model {args.model} --data {args.data}")

# %% Search with it: only pairs that the device supports are proposed
effort = "--trials 2 --qat-steps 1 --finetune-steps 1 --val-images 20 --workers 1" if args.smoke else "--trials 40"
haq(
    f"search --model {args.model} --data {args.data} --hardware {table} --bits 4,8 --constraint latency=75% "
    f"--out {args.out}/search {effort}"
)

# %% The widths of every layer and their costs
haq(f"export {args.out}/search --format markdown")
