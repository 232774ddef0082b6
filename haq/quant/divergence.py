"""Divergence of a quantized network's outputs from the float network's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import Samples
from haq.quant.evaluation import labelled, logits_of

__all__ = ["Reference", "between", "mixed"]


@dataclass(frozen=True, eq=False)
class Reference:
    """Samples on which networks are compared with the float network.

    Attributes:
        samples: Inputs of the networks. Of their labels only those count that say which positions have none.
        logits: The float network's outputs, `(N, classes)` or `(N, T, classes)`.
    """

    samples: Samples
    logits: Tensor

    def divergence(self, model: nn.Module, threads: int | None = None) -> float:
        """Returns the mean Kullback-Leibler divergence of a network's probabilities from the float network's, in nats.

        Args:
            model: Network to compare; it runs in evaluation mode.
            threads: See `haq.quant.evaluation.evaluate`.
        """
        y = torch.tensor(self.samples.y)  # a copy: arrays in Ray's object store are read-only
        logits, _ = labelled(logits_of(model, self.samples, threads).to(self.logits.device), y)
        exact = labelled(self.logits, y)[0].log_softmax(1)
        found = F.kl_div(logits.log_softmax(1), exact, reduction="batchmean", log_target=True)
        return max(float(found), 0.0)  # rounding may turn 0 into −1e-9


def mixed(samples: Samples, count: int, seed: int) -> Samples:
    """Returns `count` samples that lie between two of `samples` (mixup, Zhang et al. 2018, arXiv:1710.09412, α = 1).

    A network is confident about samples that it was trained on, so rounding changes few of its answers to them; it is
    less confident between them (Beyer et al. 2022, arXiv:2106.05237, distil on such samples). Samples of whole numbers,
    such as tokens, cannot be mixed and are returned unchanged.

    Args:
        samples: Samples to draw from; each drawn one is mixed with another.
        count: Number of samples; fewer are returned if there are not enough.
        seed: Seed for the pairs and shares.
    """
    rng = np.random.default_rng([seed, 11])
    chosen = rng.permutation(len(samples))[:count]
    x = samples.batch(chosen)[0]
    if not x.is_floating_point():
        return samples.subset(chosen)
    return Samples(between(x, rng).numpy(), samples.y[chosen])


def between(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Mixes each sample with the one before it, at a share drawn uniformly from [0, 1); returns the same shape."""
    drawn = rng.random((len(x), *[1] * (x.dim() - 1)), np.float32)
    shares = torch.from_numpy(drawn).to(x.device, x.dtype)
    return shares * x + (1 - shares) * x.roll(1, 0)
