"""What compensated rounding is worth: ResNet-20 on CIFAR-10, activations of 8 bits, first and last layer at 8 bits.

Calibration images are drawn by the seed; test images are scored once for each network. Seconds are of two threads.

    python benchmarks/compensation.py --data npz:cifar10 --weights resnet20-cifar10.pt [--bits 2,3] [--seeds 5] [--auto]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from haq.config import AUTO_PASSES, parse_bits
from haq.data import get_data
from haq.models import load_model
from haq.policy import BitPolicy
from haq.quant.calibration import calibrate
from haq.quant.evaluation import evaluate
from haq.quant.pipeline import uniform_policy
from haq.quant.preparation import prepare
from haq.quant.ptq import apply_passes
from haq.quant.reach import reached
from haq.threads import one_thread

IMAGES, BATCH = 1024, 64

Way = Callable[[nn.Module, BitPolicy, list[Tensor], int], nn.Module]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="npz:cifar10")
    parser.add_argument("--weights", default="resnet20-cifar10.pt")
    parser.add_argument("--bits", type=parse_bits, default=(2, 3))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--auto", action="store_true", help="Also --ptq auto, which takes a minute and more each time.")
    options = parser.parse_args()
    ways: dict[str, Way] = {"nearest": _nearest, "compensated": _passed(()), "sequential": _passed(("sequential",))}
    if options.auto:
        ways["auto"] = _passed(AUTO_PASSES)
    data = get_data(options.data, 1000, 0)
    model, layers = reached(load_model("resnet20", options.weights, 10, 3), data.train.batch([0])[0])
    print(f"float top-1 {evaluate(model, data.test, 'float').top1:.4f}\n")
    print(f"| weights/activations | {' | '.join(ways)} |\n|---{'|---' * len(ways)}|")
    for bits in options.bits:
        policy = uniform_policy(layers, bits, 8)
        print(f"| {bits}/8 | {' | '.join(_cell(way, model, policy, data, options.seeds) for way in ways.values())} |")


def _cell(way: Way, model: nn.Module, policy: BitPolicy, data: object, seeds: int) -> str:
    top1, seconds = [], []
    for seed in range(seeds):
        chosen = np.random.default_rng(seed).permutation(len(data.train))[:IMAGES]  # type: ignore[attr-defined]
        batches = [x for x, _ in data.train.subset(chosen).batches(BATCH)]  # type: ignore[attr-defined]
        start = time.perf_counter()
        with one_thread():
            quantized = way(model, policy, batches, seed)
        seconds.append(time.perf_counter() - start)
        top1.append(evaluate(quantized, data.test, "ptq").top1)  # type: ignore[attr-defined]
    return f"{np.mean(top1):.4f} ± {np.std(top1):.4f}, {np.mean(seconds):.0f} s"


def _nearest(model: nn.Module, policy: BitPolicy, batches: list[Tensor], seed: int) -> nn.Module:
    widths = {width for bits in policy.values() for width in (bits.w_bits, bits.a_bits) if width is not None}
    return prepare(model, policy, calibration=calibrate(model, batches, widths, compensated=False)).eval()


def _passed(passes: tuple[str, ...]) -> Way:
    def way(model: nn.Module, policy: BitPolicy, batches: list[Tensor], seed: int) -> nn.Module:
        return apply_passes(model, policy, "linear", batches, passes, seed)

    return way


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
