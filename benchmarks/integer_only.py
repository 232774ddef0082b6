"""Integer-only inference against the fake-quantized networks that it was converted from, on CIFAR-10.

ResNet-20 comes with trained weights. MobileNetV2, whose first convolution keeps the 32×32 pixels here, is first trained
for some minutes with ResNet-20 as a teacher (Hinton et al. 2015, arXiv:1503.02531); its weights are kept in `--cache`.
Batch norms are not folded. Below 8 bits the quantized networks are fine-tuned for `--steps`, with the batch norms'
statistics held.

    python benchmarks/integer_only.py --data npz:cifar10 --weights resnet20-cifar10.pt --cache mobilenet-v2-cifar10.pt
        [--epochs 20] [--images 5000] [--widths 8/8 8/16 6/6 4/4] [--steps 0] [--value-bits 16]
        [--networks resnet20 …] [--seed 0]
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import ImageData, Images, get_data
from haq.io.files import replacing
from haq.layers import quantizable_layers, replace_module
from haq.models import get_model, load_model
from haq.quant.integer import insert_value_grids, integer_network
from haq.quant.integer.check import compare
from haq.quant.modules import quantized_like
from haq.quant.quantizers.uniform import uniform

BATCH, TEMPERATURE, CALIBRATION, COMPARED = 128, 4.0, 256, 64
SAMPLES = 2048  # values of each image that an input's grid is chosen from


def small_mobilenet() -> nn.Module:
    """Returns MobileNetV2 for 32×32 pixels: the first convolution keeps their number."""
    model = get_model("mobilenet-v2", num_classes=10)
    stem = model.get_submodule("features.0.0")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    return model


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the images mirrored at random and moved by up to 4 pixels."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    padded = F.pad(torch.where(mirrored[:, None, None, None], images.flip(3), images), (4, 4, 4, 4))
    offsets = torch.randint(9, (len(images), 2), generator=generator).tolist()
    moved = torch.stack([image[:, y : y + 32, x : x + 32] for image, (y, x) in zip(padded, offsets, strict=True)])
    return moved.contiguous(memory_format=torch.channels_last)


def train(model: nn.Module, teacher: nn.Module, images: Images, epochs: int, seed: int) -> None:
    """Trains on the labels and on the teacher's logits for the images as they are."""
    generator = torch.Generator().manual_seed(seed)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = images.batch(range(len(images)))
    with torch.no_grad():
        taught = torch.cat([teacher(part) for part in x.split(500)]) / TEMPERATURE
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.25)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for chosen in order.split(BATCH)[: len(x) // BATCH]:
            logits = model(augmented(x[chosen], generator))
            student, target = (logits / TEMPERATURE).log_softmax(1), taught[chosen].softmax(1)
            soft = F.kl_div(student, target, reduction="batchmean") * TEMPERATURE**2
            loss = F.cross_entropy(logits, y[chosen]) + soft / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def prepared(model: nn.Module, images: Tensor, w_bits: int, a_bits: int) -> nn.Module:
    """Returns a copy with every layer quantized: weights per channel, inputs per tensor, least squared error."""
    model = copy.deepcopy(model).eval()
    samples: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, args: tuple[Any, ...]) -> None:
        values = args[0].flatten(1)
        few = values[:, :: values.shape[1] // SAMPLES | 1].flatten()
        samples[layer] = torch.cat([few, values.min()[None], values.max()[None]])[None]

    layers = dict(quantizable_layers(model))
    handles = [layer.register_forward_pre_hook(keep) for layer in layers.values()]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    for layer in layers.values():
        weights = uniform(layer.weight, w_bits, signed=True)
        inputs = uniform(samples[layer], a_bits, granularity="tensor")
        model = replace_module(model, layer, quantized_like(layer, weights, inputs))
    return model


def trained(cache: Path, teacher: nn.Module, images: Images, epochs: int, seed: int) -> nn.Module:
    """Returns MobileNetV2 with the weights in the cache, which are trained first when it is absent."""
    model = small_mobilenet()
    if not cache.is_file():
        train(model, teacher, images, epochs, seed)
        with replacing(cache) as path:
            torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(cache, weights_only=True))
    return model.eval()


def fine_tune(model: nn.Module, images: Images, steps: int, seed: int) -> None:
    """Trains weights and scales on the labels."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    for _ in range(steps):
        x, y = images.batch(torch.randint(len(images), (BATCH,), generator=generator).numpy())
        loss = F.cross_entropy(model(augmented(x, generator)), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def top1(model: nn.Module, images: Images, size: int = 64) -> tuple[float, float]:
    """Returns top-1 and seconds for 1,000 images."""
    right, start = 0, time.perf_counter()
    with torch.no_grad():
        for x, y in images.batches(size):
            right += int((model(x).argmax(1) == y).sum())
    return right / len(images), (time.perf_counter() - start) * 1000 / len(images)


def rows(name: str, model: nn.Module, data: ImageData, test: Images, options: argparse.Namespace) -> None:
    """Prints the table's rows of one network."""
    images, _ = data.train.batch(range(CALIBRATION))
    plain, _ = top1(model, test)
    for pair in options.widths:
        w_bits, a_bits = map(int, pair.split("/"))
        quantized = prepared(model, images, w_bits, a_bits)
        if min(w_bits, a_bits) < 8:
            fine_tune(quantized, data.train, options.steps, options.seed)
        reference = insert_value_grids(quantized, [images], options.value_bits)
        network = integer_network(reference)
        difference = compare(reference, network, test.batch(range(COMPARED))[0])
        (fake, fake_s), (gridded, _), (integer, integer_s) = (top1(m, test) for m in (quantized, reference, network))
        print(
            f"| {name} | {pair} | {plain:.4f} | {fake:.4f} | {gridded:.4f} | {integer:.4f} | {difference.largest} "
            f"| {fake_s:.1f} | {integer_s:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="npz:../shared/data/cifar10")
    parser.add_argument("--weights", default="../shared/data/weights/resnet20-cifar10.pt", help="of ResNet-20")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("mobilenet-v2-cifar10.pt"),
        help="weights of MobileNetV2; trained when absent",
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=5000, help="test images")
    parser.add_argument("--widths", nargs="+", default=["8/8", "8/16", "6/6", "4/4"], help="weights/activations")
    parser.add_argument("--value-bits", type=int, default=16, help="of the values between layers")
    parser.add_argument("--steps", type=int, default=0, help="of fine-tuning below 8 bits")
    parser.add_argument("--networks", nargs="+", default=["resnet20", "mobilenet-v2"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    data = get_data(options.data, 100, options.seed)
    test = data.test.subset(range(min(options.images, len(data.test))))
    resnet = load_model("resnet20", options.weights, 10, 3)
    networks = {"resnet20": resnet}
    if "mobilenet-v2" in options.networks:
        networks["mobilenet-v2"] = trained(options.cache, resnet, data.train, options.epochs, options.seed)
    print(
        "| network | w/a bits | float top-1 | fake-quantized | with value grids | integer | largest difference, steps "
        "| fake-quantized s/1000 | integer s/1000 |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name in options.networks:
        rows(name, networks[name], data, test, options)


if __name__ == "__main__":
    main()
