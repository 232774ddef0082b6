"""Applies one given policy: calibration, post-training passes, fine-tuning, conversion to integers, and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from haq.config import check_range
from haq.data import ImageData
from haq.io.validation import check_fields
from haq.layers import LayerSpec, ends, quantizable_layers
from haq.layers.rest import Rest
from haq.policy import BitPolicy, LayerBits
from haq.process_state import random_states_restored
from haq.progress import Observer, Silent
from haq.quant.effort import affordable
from haq.quant.evaluation import evaluate
from haq.quant.modules import Quantized
from haq.quant.ptq import apply_passes, check_applicable
from haq.quant.qat import BATCH_SIZE, Finetuning, Lessons
from haq.quant.quantizers.base import Quantizer
from haq.quant.reach import reached
from haq.quant.schemes import Scheme
from haq.quant.uncovered import rest_of

__all__ = ["Recipe", "Result", "apply_policy", "integer_top1", "stored_bytes", "uniform_policy"]

_CALIBRATION_IMAGES, _LEAST_IMAGES = 1024, 16
_CALIBRATION_S = 40.0  # that two cores may take for the float network's outputs
_FLOAT_BYTES = 4
_REPORTS = 20  # progress reports during fine-tuning


@dataclass(frozen=True)
class Recipe:
    """Options for applying a policy.

    Attributes:
        scheme: Scheme for weights and activations.
        passes: Post-training passes; see `haq.quant.ptq`. All but `sequential` fold batch norms, which then cannot be
            fine-tuned.
        qat_steps: Fine-tuning steps.
        batch: Images per step.
        seed: Seed for the order of images.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    scheme: Scheme
    passes: tuple[str, ...] = ("sequential",)
    qat_steps: int = 0
    batch: int = BATCH_SIZE
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for option, value, least in (
            ("qat_steps", self.qat_steps, 0), ("batch", self.batch, 1), ("seed", self.seed, 0)
        ):  # fmt: skip
            check_range("--" + option.replace("_", "-"), value, least)


@dataclass(frozen=True, eq=False)
class Result:
    """Result of applying a policy.

    Attributes:
        model: The quantized network.
        size_bytes: Size of the whole network as stored; see `stored_bytes`.
        rest: What it reads beside its layers.
        top1: Accuracy on the test images by stage: `calibrated`, and `fine-tuned` if there was fine-tuning.
    """

    model: nn.Module
    size_bytes: int
    top1: dict[str, float] = field(default_factory=dict)
    rest: Rest = field(default_factory=Rest)


def uniform_policy(layers: Sequence[LayerSpec], w_bits: int, a_bits: int | None, pin_ends: bool = True) -> BitPolicy:
    """Returns the same widths for all layers, with the first and last at 8 bits as is usual.

    Args:
        layers: Layers from `trace`.
        w_bits: Width of weights.
        a_bits: Width of activations; `None` leaves them in floating point.
        pin_ends: Whether the first and the last layer are held at 8 bits; see `haq.layers.ends`.
    """
    pinned = ends(layers) if pin_ends else ()
    outer = LayerBits(8, None if a_bits is None else 8)
    return BitPolicy({spec.name: outer if spec.name in pinned else LayerBits(w_bits, a_bits) for spec in layers})


@random_states_restored()
def apply_policy(
    model: nn.Module,
    policy: BitPolicy,
    data: ImageData,
    recipe: Recipe,
    observer: Observer | None = None,
    lessons: Lessons | None = None,
) -> Result:
    """Quantizes `model` with the widths of `policy` and scores it on the test images.

    Args:
        model: The float network.
        policy: Widths of its layers.
        data: Training images for calibration and fine-tuning, test images for the score.
        recipe: Scheme, passes and fine-tuning.
        observer: Receives progress.
        lessons: Fine-tuning lessons to share between several networks; by default made from the recipe.

    Raises:
        ConfigError: The policy does not fit the model, or a pass is unknown.
        ModelError: A pass cannot handle the model, or a layer cannot be reached; see `haq.quant.reach`.
    """
    observer = observer or Silent()
    sample = data.train.batch([0])[0]
    model, layers = reached(model, sample)
    layers = [layer for layer in layers if layer.name in policy]
    rest = rest_of(model, sample, layers)
    check_applicable(recipe.passes, recipe.scheme, model, sample)
    usual = min(_CALIBRATION_IMAGES, len(data.train))
    count = affordable(usual, sum(spec.macs for spec in layers), _CALIBRATION_S, _LEAST_IMAGES)
    if count < usual:
        observer.say(f"the network is large: calibrating on {count:,} of {usual:,} samples")
    shown = data.train.subset(range(count))
    batches = [x for x, _ in shown.batches(64)]
    observer.progress("calibrate", 0, 1)
    passes, seed = list(recipe.passes), recipe.seed
    quantized = apply_passes(
        model, policy, recipe.scheme, batches, passes, seed, lambda d, t: observer.progress("round", d, t)
    )
    observer.progress("calibrate", 1, 1)
    top1 = {"calibrated": evaluate(quantized, data.test, "ptq").top1}
    if recipe.qat_steps:
        torch.manual_seed(recipe.seed)  # stochastic rounding
        lessons = lessons or Lessons(data.train, model, recipe.seed, recipe.batch)
        finetuning = Finetuning(quantized, lessons, recipe.qat_steps)
        for part in range(1, _REPORTS + 1):
            finetuning.run(round(recipe.qat_steps * part / _REPORTS) - finetuning.done)
            observer.progress("fine-tune", finetuning.done, recipe.qat_steps)
        top1["fine-tuned"] = evaluate(quantized, data.test, "qat", recipe.qat_steps).top1
    return Result(quantized, stored_bytes(quantized, layers, rest), top1, rest)


def integer_top1(model: nn.Module, data: ImageData) -> float:
    """Returns the test top-1 of a quantized network in integer-only arithmetic.

    Raises:
        ModelError: A quantizer or an operation has no integer form.
    """
    from haq.quant.integer import convert

    batches = [x for x, _ in data.train.subset(range(min(256, len(data.train)))).batches(64)]
    return evaluate(convert(model, batches), data.test, "ptq").top1


def stored_bytes(model: nn.Module, layers: Sequence[LayerSpec], rest: Rest) -> int:
    """Returns the size of a network as stored, in bytes: packed codes with their scales or codebooks, 32-bit biases.

    Every output channel counts with a bias, because batch norms are folded in deployment, and every quantized input
    with one scale. Embeddings have neither. What the layers do not cover keeps its type.

    Args:
        model: Network in floating point, or quantized.
        layers: Layers that are called; others, such as heads used only in training, are not deployed.
        rest: What the network reads beside them.
    """
    specs, quantized = {spec.name: spec for spec in layers}, False
    total = 0
    for name, layer in quantizable_layers(model):
        if (spec := specs.get(name)) is None:
            continue
        total += 0 if spec.is_lookup else _FLOAT_BYTES * spec.out_channels
        quantizer = layer.weight_quantizer if isinstance(layer, Quantized) else None
        if isinstance(quantizer, Quantizer):
            total += quantizer.encode(layer.weight).size_bytes
        else:
            total += _FLOAT_BYTES * layer.weight.numel()
        if isinstance(layer, Quantized):
            quantized = True
            total += _FLOAT_BYTES if isinstance(layer.input_quantizer, Quantizer) else 0
    return total + (rest.size_bytes if quantized else rest.float_bytes)
