"""AdaRound: rounds every weight up or down so that the outputs, not the weights, stay close to the float network's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from haq.errors import DataError, ModelError
from haq.layers import copied, quantizable_layers
from haq.quant.modules import Quantized
from haq.quant.ptq.blocks import chain_of_blocks
from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.functional import code_range, is_binary
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.uniform import UniformQuantizer

__all__ = ["STEPS", "SoftRounding", "adaround"]

STEPS = 400
"""Optimisation steps for each block."""

Progress = Callable[[int, int], None]

_ZETA, _GAMMA = 1.1, -0.1  # stretch of the sigmoid from the paper, so that it reaches 0 and 1
_BETA_START, _BETA_END, _WARM_UP = 20.0, 2.0, 0.2  # annealing from the paper
# The other values were chosen on validation images of CIFAR-10; see benchmarks/ptq.py
_BATCH = 16
_LAMBDA = 3.0
_ROUNDING_RATE = 0.1
_SCALE_RATE = 1e-3  # as a share of a parameter's magnitude
_TRUST = 0.9  # weight of the rounding to start from; 0.5 leads to a tenth more divergence at 2 bits
_SAMPLE = 2  # inputs that the blocks are found with
_CHUNK = 128  # samples that run through a block at once when nothing is trained


class SoftRounding(nn.Module):
    """Replaces a weight's quantizer while the rounding of each value is optimised.

    W̃ = s·clip(⌊W/s⌋ + h(V), n, p) with the rectified sigmoid h(V) = clip(σ(V)·(ζ − γ) + γ, 0, 1) (Nagel et al. 2020,
    "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv:2004.10568, eq. 21 and 23). Initially h is
    W/s − ⌊W/s⌋, so that W̃ is W wherever the grid reaches. Codes {−1, +1} are two apart; otherwise they work the same.

    With `start`, a value may keep the level that compensation has given it, or move one step towards W; h starts a
    tenth of the way from this level towards W.

    Args:
        quantizer: Quantizer with the grid.
        weight: W, any shape.
        start: Rounded weight to start from, on the grid, same shape; by default every value may be rounded up or down.
    """

    def __init__(self, quantizer: UniformQuantizer, weight: Tensor, start: Tensor | None = None) -> None:
        super().__init__()
        bits, signed, zero = quantizer.bits, quantizer.signed, quantizer.zero_point
        self._weight, self._granularity = weight.detach(), quantizer.granularity
        self._scale = quantizer.scale.detach()[:, None]
        self._lowest = torch.full_like(self._scale, code_range(bits, signed)[0])
        if zero is not None:
            self._lowest -= zero[:, None]
        self._spacing = 2 if zero is None and is_binary(bits, signed) else 1
        self._last = 2**bits - 1
        steps = (group(self._weight, self._granularity) / self._scale - self._lowest) / self._spacing
        self._floor, up = torch.floor(steps), steps - torch.floor(steps)
        if start is not None:
            code = (group(start.detach(), self._granularity) / self._scale - self._lowest).div(self._spacing).round()
            self._floor = torch.minimum(torch.maximum(self._floor, code - 1), code)
            up = _TRUST * (code - self._floor) + (1 - _TRUST) * (steps - self._floor).clamp(0, 1)
        share = (up.clamp(1e-4, 1 - 1e-4) - _GAMMA) / (_ZETA - _GAMMA)
        self.v = nn.Parameter(torch.logit(share))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns W̃; the argument is ignored, because the weight was given before."""
        return self._value(self.up())

    def up(self) -> Tensor:
        """Returns h(V), the share by which each value is rounded up, `(groups, n)`."""
        return (torch.sigmoid(self.v) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def decided(self) -> Tensor:
        """Returns the weight on the grid, each value rounded up if its h is at least ½."""
        with torch.no_grad():
            return self._value((self.up() >= 0.5).float())

    def indecision(self, beta: float) -> Tensor:
        """Returns the mean of 1 − |2h − 1|^β, which is 0 when every h is 0 or 1 (eq. 24)."""
        return (1 - (2 * self.up() - 1).abs().pow(beta)).mean()

    def _value(self, up: Tensor) -> Tensor:
        steps = (self._floor + up).clamp(0, self._last)
        return ungroup((steps * self._spacing + self._lowest) * self._scale, self._weight, self._granularity)


def adaround(
    quantized: nn.Module,
    model: nn.Module,
    batches: Iterable[Tensor],
    steps: int = STEPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> nn.Module:
    """Returns a copy of `quantized` whose weights are rounded up or down for the least output error.

    Minimises ‖f(W x) − f(W̃ x̂)‖² + λ·Σ(1 − |2h(V) − 1|^β) over V, where f includes ReLUs, x̂ comes from the blocks that
    are already quantized, and β is annealed (Nagel et al. 2020, arXiv:2004.10568, eq. 25 and section 3.3). The weights
    of the result lie on the grids of their quantizers, which leave them unchanged; there is no other state.

    Deviations: the layers of a residual block are optimised together (BRECQ, Li et al. 2021, arXiv:2102.05426, section
    3.2), with the scales of their inputs (the same, section 3.4). The error is in units of the target's variance and
    the regulariser is a mean, so that one λ suits every layer. Rates are higher and there are fewer steps.

    Args:
        quantized: A prepared network.
        model: The float network that it was prepared from, with the same batch norms folded.
        batches: Calibration inputs, each `(N, C, H, W)`; a few hundred images in total. The values of all images are
            held in memory at once.
        steps: Optimisation steps for each block.
        seed: Seed for the choice of images in each step.
        progress: Called with the number of blocks done and in total.

    Raises:
        DataError: There are no batches.
        ModelError: A weight's quantizer is not uniform, a network cannot be traced, or the two differ.
    """
    _check(quantized)
    inputs = list(batches)
    if not inputs:
        raise DataError("AdaRound needs calibration inputs, but there are no batches")
    tuned, sample = copied(quantized).eval(), inputs[0][:_SAMPLE]
    blocks = chain_of_blocks(tuned, "AdaRound", sample)
    references = chain_of_blocks(copied(model).eval(), "AdaRound", sample)
    if len(blocks) != len(references):
        raise ModelError(
            f"the quantized network has {len(blocks)} blocks, the float one {len(references)}; give AdaRound the float "
            "network that was prepared, with the same batch norms folded"
        )
    exact = noisy = torch.cat(inputs)
    generator = torch.Generator().manual_seed(seed)
    exact_weights = {name: layer.weight for name, layer in quantizable_layers(model)}
    floats = {layer: exact_weights[name] for name, layer in quantizable_layers(tuned)}
    decided: set[nn.Module] = set()
    for done, (block, reference) in enumerate(zip(blocks, references, strict=True), 1):
        target = _run(reference, exact)
        layers = [layer for layer in _uniform_layers(block) if layer not in decided]
        if layers:
            _Block(block, layers, [floats[layer] for layer in layers], steps, generator).tune(noisy, target)
        decided.update(layers)
        noisy, exact = _run(block, noisy), target
        if progress is not None:
            progress(done, len(blocks))
    return tuned


class _Block:
    """A block whose layers are being tuned."""

    def __init__(
        self,
        block: nn.Module,
        layers: list[Quantized],
        floats: list[Tensor],
        steps: int,
        generator: torch.Generator,
    ) -> None:
        self._block, self._layers, self._steps, self._generator = block, layers, steps, generator
        self._rounding = [
            SoftRounding(_uniform(layer), exact, layer.weight) for layer, exact in zip(layers, floats, strict=True)
        ]
        groups: list[dict[str, object]] = [{"params": [r.v for r in self._rounding], "lr": _ROUNDING_RATE}]
        self._scales = self._input_scales()
        groups += [{"params": [parameter], "lr": rate} for parameter, rate in self._scales]
        self._optimizer = torch.optim.Adam(groups)

    def _input_scales(self) -> list[tuple[nn.Parameter, float]]:
        quantizers = [layer.input_quantizer for layer in self._layers]
        found = [pair for q in quantizers if isinstance(q, Quantizer) for pair in q.learned()]
        return [(parameter, _SCALE_RATE * magnitude) for parameter, magnitude in found]

    def tune(self, x: Tensor, target: Tensor) -> None:
        """Optimises the rounding.

        Args:
            x: Inputs of the block in the quantized network, `(N, …)`.
            target: Outputs of the block in the float network, `(N, …)`.
        """
        quantizers = [_uniform(layer) for layer in self._layers]
        for layer, rounding in zip(self._layers, self._rounding, strict=True):
            layer.weight_quantizer = rounding
        variance = target.var().clamp_min(1e-12)
        for step in range(self._steps):
            self._set_rates(step / self._steps)
            chosen = torch.randint(len(target), (min(_BATCH, len(target)),), generator=self._generator)
            loss = (self._block(x[chosen]) - target[chosen]).square().mean() / variance
            loss = loss + self._regulariser(step / self._steps)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
        for layer, rounding, quantizer in zip(self._layers, self._rounding, quantizers, strict=True):
            layer.weight_quantizer = quantizer
            layer.weight = nn.Parameter(rounding.decided(), requires_grad=layer.weight.requires_grad)
        self._block.zero_grad(set_to_none=True)

    def _regulariser(self, progress: float) -> Tensor:
        if progress < _WARM_UP:
            return torch.zeros(())
        beta = _BETA_END + (_BETA_START - _BETA_END) * _cosine((progress - _WARM_UP) / (1 - _WARM_UP))
        weights = [rounding.v.numel() for rounding in self._rounding]
        terms = [r.indecision(beta) * n for r, n in zip(self._rounding, weights, strict=True)]
        return _LAMBDA * torch.stack(terms).sum() / sum(weights)

    def _set_rates(self, progress: float) -> None:
        for settings, (_, rate) in zip(self._optimizer.param_groups[1:], self._scales, strict=True):
            settings["lr"] = rate * _cosine(progress)


def _cosine(progress: float) -> float:
    """Falls from 1 to 0 while `progress` rises from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def _run(block: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([block(part.clone()) for part in torch.split(x, _CHUNK)])  # a block may change its input


def _check(quantized: nn.Module) -> None:
    for name, layer in quantizable_layers(quantized):
        if not isinstance(layer, Quantized) or isinstance(layer.weight_quantizer, nn.Identity):
            continue
        if not isinstance(layer.weight_quantizer, UniformQuantizer):
            kind = type(layer.weight_quantizer).__name__
            raise ModelError(
                f"layer {name!r} has a {kind} for its weight; AdaRound needs a uniform grid: use scheme linear, "
                "asymmetric or power-of-two, or leave adaround out"
            )


def _uniform_layers(block: nn.Module) -> list[Quantized]:
    layers = [m for m in block.modules() if isinstance(m, Quantized)]
    return [layer for layer in layers if isinstance(layer.weight_quantizer, UniformQuantizer)]


def _uniform(layer: Quantized) -> UniformQuantizer:
    assert isinstance(layer.weight_quantizer, UniformQuantizer)
    return layer.weight_quantizer
