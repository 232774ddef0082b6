"""Goes from a trained ResNet-20 to a mixed-precision network in onnxruntime, as a script with cells.

    python examples/cifar10.py --weights resnet20-cifar10.pt --data cifar10

WEIGHTS is a state dict of the CIFAR ResNet-20. DATA is a folder with `train.npz` and `test.npz`; each has `x`, uint8
`(N, 32, 32, 3)`, and `y`. `--smoke` runs everything at the smallest scale, as a quick check.
"""

# %% Arguments
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from haq.search import finetune, pick, run

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--weights", required=True, help="state dict of the trained network")
parser.add_argument("--data", required=True, help="folder with train.npz and test.npz")
parser.add_argument("--out", default="runs/cifar10", type=Path, help="folder for the results")
parser.add_argument("--smoke", action="store_true", help="run at the smallest scale")
args = parser.parse_args()


# %% Search for half the latency of the uniform 8-bit network, on a bit-serial accelerator
effort = {"trials": 60, "qat_steps": 60, "finetune_steps": 600}
if args.smoke:
    effort = {"trials": 2, "qat_steps": 1, "finetune_steps": 1, "val_images": 20, "workers": 1, "bits": (2, 4, 8)}
result = run(
    constraints=["latency=50%"],
    model="resnet20",
    weights=args.weights,
    data=f"npz:{args.data}",
    hardware="edge",
    out=args.out / "search",
    **effort,
)
print(f"test top-1 {result.best.test_top1:.4f}; the whole comparison: {result.report()}")

# %% The Pareto front: other policies that the search found
trials = result.to_dataframe()
front = trials[trials["front"]]
print(front[["top1", "loss", "latency_ms", "size_bytes", "w_bits", "a_bits"]].sort_values("size_bytes").to_string())

# %% Pick another point without a new search: the best policy that is no larger than the median of the front
limit = front["size_bytes"].median()
picked = pick(result, ["latency=50%", f"size={limit:.0f}B"], out=args.out / "picked")
print(f"test top-1 {picked.best.test_top1:.4f} in {picked.best.cost['size_bytes']:,.0f} bytes")

# %% Fine-tune it longer, to match the float network's outputs
tuned = finetune(picked, epochs=1 if args.smoke else 20, out=args.out / "tuned")
print(f"test top-1 {tuned.best.test_top1:.4f} after fine-tuning")

# %% Export it and run it in onnxruntime
tuned.export("onnx", args.out / "net.onnx")

import onnxruntime

with np.load(Path(args.data) / "test.npz") as file:
    images, labels = file["x"][:1000], file["y"][:1000]
mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
x = ((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
session = onnxruntime.InferenceSession(args.out / "net.onnx", providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {"input": x})
print(f"onnxruntime: top-1 {(logits.argmax(1) == labels).mean():.4f} on {len(labels)} test images")
