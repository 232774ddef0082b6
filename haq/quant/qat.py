"""Quantization-aware fine-tuning, by distillation from the float network or on labels."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from haq.data import Samples
from haq.errors import ModelError
from haq.layers import evaluating, fresh, quantizable_layers
from haq.quant.evaluation import device_of, outputs_of
from haq.quant.modules import QuantConv2d, Quantized, QuantLinear
from haq.quant.quantizer import Quantizer

__all__ = ["BATCH_SIZE", "Finetuning", "finetune"]

logger = logging.getLogger(__name__)

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
    layer, because coarser grids need larger moves. The network stays in evaluation mode, so that dropout of any form is
    off and outputs are those that count; only quantizers, and batch norms as below, are in training mode.

    Batch norms keep the float network's statistics, of which a few hundred small batches would only make noisier ones,
    unless quantization broke the network, so that it disagrees with the float one on most samples: then the statistics
    are wrong, and follow the quantized activations, where a batch gives a norm more than one value a channel and the
    network's own `train` does not hold it back. Their scales and shifts are trained either way.

    Args:
        model: A prepared network; it is trained in place.
        samples: To train on.
        teacher: The float network's outputs for them, `(N, classes)` or `(N, T, words)`; or the float network. `None`
            trains on the labels instead, by cross-entropy.
        steps: Length of the whole run.
        seed: Decides the order of the samples.
        batch: Images a step; fewer texts, see `Samples.fitting`.
        rate: Of the weights, at the start; by default the one described above.

    Raises:
        ModelError: The network returns no tensor, or a batch norm without statistics of its own needs larger batches.
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
        size = min(samples.fitting(batch), len(samples))
        norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
        self._norms_fixed = bool(norms) and teacher is not None and self._agreement(teacher) > _BROKEN
        self._norms = self._trainable(norms, size)
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
        with self._training():
            return self._run(steps)

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Has in training mode what is trained by it, and nothing else."""
        self.model.eval()
        for module in (*self._quantizers, *([] if self._norms_fixed else self._norms)):
            module.train()
        recurrent = {module: module.dropout for module in self.model.modules() if isinstance(module, nn.RNNBase)}
        for module in recurrent:  # cuDNN has their gradients in training mode only
            module.dropout = 0.0
            module.train()
        try:
            yield
        finally:
            for module, dropout in recurrent.items():
                module.dropout = dropout
            self.model.eval()

    def _trainable(self, norms: Mapping[str, _BatchNorm], size: int) -> list[_BatchNorm]:
        """Returns the batch norms whose statistics may follow batches of this size."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.train()
        free = {module for module in norms.values() if module.training}  # a network may keep some as they are
        for module, mode in modes.items():
            module.training = mode
        counts: dict[nn.Module, int] = {}

        def count(module: _BatchNorm, args: tuple[Tensor, ...]) -> None:
            counts[module] = min(args[0].numel() // args[0].shape[1], counts.get(module, args[0].numel()))
            if counts[module] < 2 and module.running_mean is None:
                name = next(name for name, norm in norms.items() if norm is module)
                raise ModelError(
                    f"batch norm {name!r} keeps no statistics, and a batch of {size} gives it one value a channel; "
                    "fine-tune with --batch 2 or more"
                )

        handles = [module.register_forward_pre_hook(count) for module in norms.values()]
        try:
            if norms:
                with evaluating(self.model):
                    outputs_of(self.model, self.samples.batch(np.arange(size))[0].to(self._device))
        finally:
            for handle in handles:
                handle.remove()
        single = [name for name, module in norms.items() if module in free and counts.get(module) == 1]
        if single and not self._norms_fixed:
            logger.warning("batches of %d leave the statistics of %d batch norms as they are", size, len(single))
        return [module for module in norms.values() if module in free and counts.get(module, 0) > 1]

    def _run(self, steps: int) -> float:
        loss = torch.zeros(())
        for _ in range(min(steps, self.steps - self.done)):
            for quantizer in self._quantizers:
                quantizer.advance(self.done / self.steps)
            chosen = next(self._batches)
            x, y = (part.to(self._device) for part in self.samples.batch(chosen))
            self._optimizer.zero_grad(set_to_none=True)
            output = outputs_of(self.model, fresh(x)).flatten(0, -2)
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
        return float(loss.detach())

    def _taught(self, teacher: Tensor | nn.Module, chosen: NDArray[np.int64], x: Tensor) -> Tensor:
        """Returns the float network's outputs, `(answers, classes)`."""
        if isinstance(teacher, Tensor):
            return teacher[torch.from_numpy(chosen)].to(self._device).flatten(0, -2)
        with evaluating(teacher):
            outputs = outputs_of(teacher, fresh(x).to(device_of(teacher))).flatten(0, -2)
        return outputs.to(self._device)

    def _agreement(self, teacher: Tensor | nn.Module) -> float:
        """Returns the share of samples on which the network's answer is the teacher's."""
        shown = np.arange(min(_AGREEMENT_SAMPLES, len(self.samples)))
        x = self.samples.batch(shown)[0].to(self._device)
        with evaluating(self.model):
            answers = outputs_of(self.model, fresh(x)).flatten(0, -2).argmax(1)
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
