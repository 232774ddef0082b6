"""How much longer a quantization-aware training step takes than a float one, side by side in one process.

Both train the network as it came, batch norms included; the quantized one at 4 bits with each scheme, or at the width
that it has. Steps alternate, so that a busy machine slows both; the ratio of the medians is what counts.

    python benchmarks/qat_step.py [--seed 0] [--steps 30] [--schemes linear,lsq]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from haq.layers import quantizable_layers
from haq.models import get_model
from haq.policy import BitPolicy
from haq.quant.calibration import calibrate
from haq.quant.preparation import prepare
from haq.quant.schemes import get_scheme


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def ratio(name: str, shape: tuple[int, ...], steps: int, scheme: str) -> tuple[float, float]:
    """Returns the median seconds of a float and of a quantized step."""
    x, y = torch.randn(64, *shape), torch.randint(10, (64,))
    network = get_model(name, num_classes=10)
    widths = get_scheme(scheme).widths
    bits = 4 if 4 in widths else widths[0]
    policy = BitPolicy.uniform([layer for layer, _ in quantizable_layers(network)], bits).with_scheme(scheme)
    quantized = prepare(network.eval(), policy, calibration=calibrate(network, [x], [bits], scheme)).train()

    def trainer(model: torch.nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters(), 1e-5)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        return step

    float_step, quantized_step = trainer(network.train()), trainer(quantized)
    pairs = [(seconds(float_step), seconds(quantized_step)) for _ in range(steps + 3)][3:]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--schemes", default="linear")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    print("| network, batch 64 | scheme | float step | quantized step | ratio |\n|---|---|---|---|---|")
    for name, shape in (("resnet20", (3, 32, 32)), ("digits-resnet", (1, 8, 8))):
        for scheme in options.schemes.split(","):
            plain, quantized = ratio(name, shape, options.steps, scheme)
            milliseconds = f"{plain * 1e3:.0f} ms | {quantized * 1e3:.0f} ms"
            print(f"| {name} | {scheme} | {milliseconds} | {quantized / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
