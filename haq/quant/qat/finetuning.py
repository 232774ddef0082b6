"""The training loop of quantization-aware fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import Samples
from haq.errors import ConfigError
from haq.layers import fresh
from haq.quant.evaluation import device_of, labelled, outputs_of
from haq.quant.modules import Quantized
from haq.quant.qat.lessons import BATCH_SIZE, Lessons
from haq.quant.qat.norms import norms_of, trainable
from haq.quant.qat.rates import usual_rates
from haq.quant.quantizers.base import Quantizer

__all__ = ["Finetuning", "finetune"]

_BROKEN = 0.5  # agreement with the float network up to which a network counts as broken


class Finetuning:
    """A fine-tuning run that can be advanced in chunks.

    The quantized network learns the float network's outputs: the loss is the Kullback-Leibler divergence of the two
    softmax distributions (Hinton et al. 2015, arXiv:1503.02531, with temperature 1), plus the quantizers' own
    penalties. A pretrained network fits its training labels almost perfectly, so labels give little gradient. Its
    outputs give more, especially for mixed samples; see `Lessons`. The optimiser is Adam, with rates that fall to zero
    as a cosine over `steps` and depend on how close the network is at the start; see `usual_rates`. The network stays
    in evaluation mode, so that any dropout is off and the outputs are those of the final network. Only quantizers, and
    batch norms as described below, are in training mode.

    Batch norms keep the float network's statistics, because a few hundred small batches would only give noisier ones.
    If quantization broke the network, so that it disagrees with the float one on most samples, the statistics are wrong
    and are updated from the quantized activations. This needs batches with more than one value per channel, and the
    network's own `train` must not keep the norm in evaluation mode. Scales and shifts are trained in any case.

    Args:
        model: A prepared network; it is trained in place.
        lessons: Inputs and targets of each step.
        steps: Number of steps of the whole run.
        rate: Learning rate of the weights at the start; by default that of `usual_rates`.

    Raises:
        ModelError: The network returns no tensor, or a batch norm without statistics of its own needs larger batches.
    """

    def __init__(self, model: nn.Module, lessons: Lessons, steps: int, rate: float | None = None) -> None:
        self.model, self.lessons, self.steps = model, lessons, steps
        self.done, self._device = 0, device_of(model)
        self._quantizers = [m for m in model.modules() if isinstance(m, Quantizer)]
        self._penalised = [
            (layer.weight_quantizer, layer.weight)
            for layer in model.modules()
            if isinstance(layer, Quantized) and isinstance(layer.weight_quantizer, Quantizer)
        ]
        agreement = lessons.agreement(model)
        rates = usual_rates(model, agreement)
        rates = rates if rate is None else replace(rates, weights=rate)
        self._optimizer = torch.optim.Adam(rates.groups(model))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))
        )
        self._norms_fixed = bool(norms_of(model)) and agreement is not None and agreement > _BROKEN
        self._norms = trainable(model, lessons.samples, lessons.size, quiet=self._norms_fixed)

    @property
    def rate(self) -> float:
        """The weights' learning rate for the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def state(self) -> dict[str, Any]:
        """Returns all state that the rest of the run depends on, as tensors and plain types."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "done": self.done,
            "norms_fixed": self._norms_fixed,
            "random": torch.get_rng_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resumes from the result of `state`; a new run that is restored ends like one that was never interrupted."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.last_epoch = self.done = state["done"]
        self._norms_fixed = state["norms_fixed"]
        torch.set_rng_state(state["random"])

    def run(self, steps: int) -> float:
        """Takes up to `steps` more steps, as far as the run has any left; returns the last batch's loss in nats."""
        with self._training():
            return self._run(steps)

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Inside its block, puts only the modules that need it into training mode."""
        self.model.eval()
        for module in (*self._quantizers, *([] if self._norms_fixed else self._norms)):
            module.train()
        recurrent = {module: module.dropout for module in self.model.modules() if isinstance(module, nn.RNNBase)}
        for module in recurrent:  # cuDNN computes their gradients only in training mode
            module.dropout = 0.0
            module.train()
        try:
            yield
        finally:
            for module, dropout in recurrent.items():
                module.dropout = dropout
            self.model.eval()

    def _run(self, steps: int) -> float:
        loss = torch.zeros(())
        for _ in range(min(steps, self.steps - self.done)):
            for quantizer in self._quantizers:
                quantizer.advance(self.done / self.steps)
            x, y, taught = self.lessons.at(self.done, self._device)
            self._optimizer.zero_grad(set_to_none=True)
            output, labels = labelled(outputs_of(self.model, fresh(x)), y)
            if taught is None:
                loss = F.cross_entropy(output, labels)
            else:
                loss = F.kl_div(output.log_softmax(1), taught, reduction="batchmean", log_target=True)
            total = loss + sum(self._penalties())
            total.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._schedule.step()
            self.done += 1
        return float(loss.detach())

    def _penalties(self) -> Iterator[Tensor]:
        weights = {id(quantizer): weight for quantizer, weight in self._penalised}
        for quantizer in self._quantizers:
            penalty = quantizer.penalty(weights.get(id(quantizer), torch.zeros(())))
            if penalty is not None:
                yield penalty


def finetune(
    model: nn.Module,
    samples: Samples,
    teacher: nn.Module | None,
    steps: int,
    seed: int = 0,
    batch: int = BATCH_SIZE,
) -> nn.Module:
    """Fine-tunes a prepared network in place and returns it in evaluation mode; see `Lessons` and `Finetuning`.

    Args:
        model: A prepared network.
        samples: Samples to train on.
        teacher: The float network; `None` trains on the labels.
        steps: Number of steps.
        seed: Seed for the order and the mixing of samples.
        batch: Samples per step.

    Raises:
        ConfigError: The teacher is not a network.
        ModelError: See `Finetuning`.
    """
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise ConfigError(
            f"finetune takes the float network as teacher, not a {type(teacher).__name__}; pass the network itself, "
            "because samples are mixed during training"
        )
    Finetuning(model, Lessons(samples, teacher, seed, batch), steps).run(steps)
    return model
