"""What the post-training passes are worth: ResNet-20 on CIFAR-10, first and last layer at 8 bits.

Settings of the passes were chosen by the Kullback-Leibler divergence on validation images; test images are scored once.
Seconds are of one thread and all passes, folding and calibration among them.

    python benchmarks/ptq.py --data npz:cifar10 --weights resnet20-cifar10.pt [--seed 0] [--images 1024]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from haq.data import get_data
from haq.layers import quantizable_layers
from haq.models import load_model
from haq.policy import BitPolicy, LayerBits
from haq.quant.evaluation import evaluate
from haq.quant.ptq import apply_passes

WIDTHS = ((4, 8), (3, 8), (4, 4))
PASSES = {
    "plain": (),
    "cle+bias": ("cle", "bias"),
    "cle+bias-analytic": ("cle", "bias-analytic"),
    "adaround+bias": ("adaround", "bias"),
    "all": ("cle", "adaround", "bias"),
}
BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="npz:cifar10")
    parser.add_argument("--weights", default="resnet20-cifar10.pt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = get_data(options.data, 1000, options.seed)
    model = load_model("resnet20", options.weights, 10, 3)
    chosen = np.random.default_rng(options.seed).permutation(len(data.train))[: options.images]
    batches = [x for x, _ in data.train.subset(chosen).batches(BATCH)]
    names = [name for name, _ in quantizable_layers(model)]
    print(f"float top-1 {evaluate(model, data.test, 'float').top1:.4f}\n")
    print(f"| W/A | {' | '.join(PASSES)} |\n|---{'|---' * len(PASSES)}|")
    for w_bits, a_bits in WIDTHS:
        layers = {name: LayerBits(w_bits, a_bits) for name in names}
        policy = BitPolicy({**layers, names[0]: LayerBits(8, 8), names[-1]: LayerBits(8, 8)})
        cells = []
        for passes in PASSES.values():
            start = time.perf_counter()
            quantized = apply_passes(model, policy, "linear", batches, passes, options.seed)
            seconds = time.perf_counter() - start
            cells.append(f"{evaluate(quantized, data.test, 'ptq').top1:.4f}, {seconds:.0f} s")
        print(f"| {w_bits}/{a_bits} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
