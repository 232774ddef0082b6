"""Quantization-aware fine-tuning, by distillation from the float network or on labels."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from haq.data import Samples
from haq.layers import evaluating, quantizable_layers
from haq.quant.evaluation import device_of
from haq.quant.modules import QuantConv2d, Quantized, QuantLinear
from haq.quant.quantizer import Quantizer

__all__ = ["BATCH_SIZE", "Finetuning", "finetune"]

BATCH_SIZE = 64
_WEIGHT_RATE = 8e-3  # divided by 2^bits; chosen on validation images of CIFAR-10, see benchmarks/README.md
_QUANTIZER_RATE = 5e-3  # of a parameter's own magnitude
_FLOAT_BITS = 8
_BROKEN = 0.5
_AGREEMENT_SAMPLES = 256


class Finetuning:
    """A fine-tuning run that can be advanced in chunks.

    The quantized network learns to give the float network's outputs: the loss is the Kullback-Leibler divergence of
    the two softmax distributions (Hinton et al. 2015, arXiv:1503.02531, with temperature 1), plus the quantizers' own
    penalties. A pretrained network fits its training labels almost perfectly, so labels hold little gradient, while its
    outputs still do. Adam, with a cosine to zero over `steps`. The weights' rate halves with every bit of the median
    layer, because coarser grids need larger moves. Dropout stays off.

    Batch norms keep the float network's statistics, of which a few hundred small batches would only make noisier ones,
    unless quantization broke the network, so that it disagrees with the float one on most samples: then the statistics
    are wrong, and follow the quantized activations. Their scales and shifts are trained either way.

    Args:
        model: A prepared network; it is trained in place.
        samples: To train on.
        teacher: The float network's outputs for them, `(N, classes)` or `(N, T, words)`; or the float network. `None`
            trains on the labels instead, by cross-entropy.
        steps: Length of the whole run.
        seed: Decides the order of the samples.
        batch: Images a step; fewer texts, see `Samples.fitting`.
        rate: Of the weights, at the start; by default the one described above.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        teacher: Tensor | nn.Module | None,
        steps: int,
        seed: int,
        batch: int = BATCH_SIZE,
        rate: float | None = None,
    ) -> None:
        self.model, self.samples, self.teacher, self.steps = model, samples, teacher, steps
        self.done, self._device = 0, device_of(model)
        self._quantizers = [m for m in model.modules() if isinstance(m, Quantizer)]
        self._penalised = [
            (layer.weight_quantizer, layer.weight)
            for layer in model.modules()
            if isinstance(layer, QuantConv2d | QuantLinear) and isinstance(layer.weight_quantizer, Quantizer)
        ]
        learned = [(p, size) for quantizer in self._quantizers for p, size in quantizer.learned()]
        owned = {id(p) for quantizer in self._quantizers for p in quantizer.parameters()}
        weights = [p for p in model.parameters() if p.requires_grad and id(p) not in owned]
        rate = _WEIGHT_RATE / 2 ** _median_bits(model) if rate is None else rate
        groups: list[dict[str, object]] = [{"params": weights, "lr": rate}]
        groups += [{"params": [p], "lr": _QUANTIZER_RATE * size} for p, size in learned]
        self._optimizer = torch.optim.Adam(groups)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))
        )
        norms = any(isinstance(module, _BatchNorm) for module in model.modules())
        self._norms_fixed = norms and teacher is not None and self._agreement(teacher) > _BROKEN
        size = min(samples.fitting(batch), len(samples))
        self.epoch_steps = len(samples) // size
        self._batches = _endless_batches(len(samples), size, np.random.default_rng(seed))

    @property
    def rate(self) -> float:
        """The weights' learning rate for the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def state(self) -> dict[str, Any]:
        """Returns all that decides the rest of the run, as tensors and plain types."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "done": self.done,
            "norms_fixed": self._norms_fixed,
            "random": torch.get_rng_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned; a run that was just made and restored ends as one that never stopped."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.last_epoch = self.done = state["done"]
        self._norms_fixed = state["norms_fixed"]
        torch.set_rng_state(state["random"])
        next(itertools.islice(self._batches, self.done, self.done), None)

    def run(self, steps: int) -> float:
        """Takes up to `steps` more steps, never past the whole run, and returns the last batch's loss in nats."""
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, _DropoutNd) or (self._norms_fixed and isinstance(module, _BatchNorm)):
                module.eval()
        loss = torch.zeros(())
        for _ in range(min(steps, self.steps - self.done)):
            for quantizer in self._quantizers:
                quantizer.advance(self.done / self.steps)
            chosen = next(self._batches)
            x, y = (part.to(self._device) for part in self.samples.batch(chosen))
            self._optimizer.zero_grad(set_to_none=True)
            output = self.model(x).flatten(0, -2)
            if self.teacher is None:
                loss = F.cross_entropy(output, y.flatten())
            else:
                target = F.log_softmax(self._taught(self.teacher, chosen, x), dim=1)
                loss = F.kl_div(F.log_softmax(output, dim=1), target, reduction="batchmean", log_target=True)
            total = loss + sum(self._penalties())
            total.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._schedule.step()
            self.done += 1
        self.model.eval()
        return float(loss.detach())

    def _taught(self, teacher: Tensor | nn.Module, chosen: NDArray[np.int64], x: Tensor) -> Tensor:
        """Returns the float network's outputs, `(answers, classes)`."""
        if isinstance(teacher, Tensor):
            return teacher[torch.from_numpy(chosen)].to(self._device).flatten(0, -2)
        with evaluating(teacher):
            outputs: Tensor = teacher(x.to(device_of(teacher))).flatten(0, -2)
        return outputs.to(self._device)

    def _agreement(self, teacher: Tensor | nn.Module) -> float:
        """Returns the share of samples on which the network's answer is the teacher's."""
        shown = np.arange(min(_AGREEMENT_SAMPLES, len(self.samples)))
        x = self.samples.batch(shown)[0].to(self._device)
        with evaluating(self.model):
            answers = self.model(x).flatten(0, -2).argmax(1)
        return float((answers == self._taught(teacher, shown, x).argmax(1)).float().mean())

    def _penalties(self) -> Iterator[Tensor]:
        weights = {id(quantizer): weight for quantizer, weight in self._penalised}
        for quantizer in self._quantizers:
            penalty = quantizer.penalty(weights.get(id(quantizer), torch.zeros(())))
            if penalty is not None:
                yield penalty


def finetune(
    model: nn.Module,
    samples: Samples,
    teacher: Tensor | nn.Module,
    steps: int,
    seed: int = 0,
    batch: int = BATCH_SIZE,
) -> nn.Module:
    """Fine-tunes a prepared network in place and returns it in evaluation mode; see `Finetuning`."""
    Finetuning(model, samples, teacher, steps, seed, batch).run(steps)
    return model


def _median_bits(model: nn.Module) -> float:
    def narrower(layer: Quantized) -> int:
        widths = [getattr(q, "bits", _FLOAT_BITS) for q in (layer.weight_quantizer, layer.input_quantizer)]
        return min(*widths, _FLOAT_BITS)

    layers = [layer for _, layer in quantizable_layers(model) if isinstance(layer, QuantConv2d | QuantLinear)]
    return statistics.median(narrower(layer) for layer in layers) if layers else _FLOAT_BITS


def _endless_batches(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yields index arrays; every sample is seen once before any is seen again."""
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
