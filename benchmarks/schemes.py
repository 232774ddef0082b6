"""Every scheme at 2, 3, 4 and 8 bits on one network: calibrated, and after the same fine-tuning.

Schemes for weights and activations quantize both to the width; schemes for weights alone leave activations at 8 bits;
schemes with one width have one row. First and last layer are at 8 bits. Runs are independent processes of one thread.

    python benchmarks/schemes.py --data npz:cifar10 --weights resnet20-cifar10.pt [--steps 300] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from haq.data import get_data
from haq.layers import quantizable_layers
from haq.models import load_model
from haq.policy import BitPolicy, LayerBits
from haq.quant.calibration import calibrate
from haq.quant.evaluation import evaluate, logits_of
from haq.quant.preparation import prepare
from haq.quant.qat import finetune
from haq.quant.schemes import get_scheme, list_schemes

VAL_IMAGES = 1000
CALIBRATION_IMAGES = 512


def cases(names: list[str], bits: list[int]) -> list[tuple[str, int, int | None]]:
    """Returns (scheme, w_bits, a_bits), the widest last."""
    found = []
    for scheme in map(get_scheme, names):
        widths = [width for width in bits if width in scheme.widths] or scheme.widths[:1]
        found += [(scheme.name, w_bits, scheme.activation_width(w_bits)) for w_bits in widths]
    return sorted(found, key=lambda case: case[1] > 4)


class Bench:
    """What all cases of one process share."""

    def __init__(self, data: str, weights: str, steps: int, batch: int, seed: int) -> None:
        torch.set_num_threads(1)
        self.steps, self.batch, self.seed = steps, batch, seed
        self.images = get_data(data, VAL_IMAGES, seed)
        self.model = load_model("resnet20", weights, self.images.num_classes, 3)
        self.teacher = logits_of(self.model, self.images.train) if steps else torch.empty(0)

    def score(self, case: tuple[str, int, int | None]) -> dict[str, object]:
        """Scores one scheme at one width on the test images."""
        torch.manual_seed(self.seed)
        name, w_bits, a_bits = case
        layers = [layer for layer, _ in quantizable_layers(self.model)]
        ends = {layer: LayerBits(8, 8) for layer in (layers[0], layers[-1])}
        policy = BitPolicy({layer: ends.get(layer, LayerBits(w_bits, a_bits)) for layer in layers}, name)
        shown = self.images.train.subset(range(CALIBRATION_IMAGES))
        calibration = calibrate(self.model, [x for x, _ in shown.batches(64)], {w_bits, a_bits or 8, 8}, name)
        quantized = prepare(self.model, policy, calibration=calibration)
        result: dict[str, object] = {"scheme": name, "w_bits": w_bits, "a_bits": a_bits}
        result["ptq"] = evaluate(quantized, self.images.test, "ptq").top1
        if self.steps and w_bits <= 8:
            start = time.perf_counter()
            finetune(quantized, self.images.train, self.teacher, self.steps, self.seed, self.batch)
            result["seconds"] = time.perf_counter() - start
            result["qat"] = evaluate(quantized, self.images.test, "qat", self.steps).top1
        return result


_bench: list[Bench] = []


def start(*arguments: object) -> None:
    _bench.append(Bench(*arguments))  # type: ignore[arg-type]


def score(case: tuple[str, int, int | None]) -> dict[str, object]:
    return _bench[0].score(case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--schemes", default=",".join(list_schemes()))
    parser.add_argument("--bits", default="2,3,4,8")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append each result here, a JSON line each")
    options = parser.parse_args()
    chosen = cases(options.schemes.split(","), [int(width) for width in options.bits.split(",")])
    print("| scheme | weights/activations | calibrated | fine-tuned | s |\n|---|---|---|---|---|", flush=True)
    shared = (options.data, options.weights, options.steps, options.batch, options.seed)
    with ProcessPoolExecutor(options.workers, get_context("spawn"), start, shared) as pool:
        jobs = [pool.submit(score, case) for case in chosen]
        for job in as_completed(jobs):
            row = job.result()
            tuned = f"{row['qat']:.4f} | {row['seconds']:.0f}" if "qat" in row else "|"
            widths = f"{row['w_bits']}/{row['a_bits'] or 'float'}"
            print(f"| {row['scheme']} | {widths} | {row['ptq']:.4f} | {tuned} |", flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
