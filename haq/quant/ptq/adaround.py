"""AdaRound: every weight is rounded up or down so that outputs, not weights, stay close to the float network's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from haq.errors import DataError, ModelError
from haq.layers import copied, quantizable_layers
from haq.quant.modules import QuantConv2d, Quantized, QuantLinear
from haq.quant.ptq.blocks import chain_of_blocks
from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.functional import is_binary
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.uniform import UniformQuantizer

__all__ = ["STEPS", "SoftRounding", "adaround"]

STEPS = 400
"""Optimisation steps for each block."""

Progress = Callable[[int, int], None]

_ZETA, _GAMMA = 1.1, -0.1  # the paper's stretch of the sigmoid, which lets it reach 0 and 1
_BETA_START, _BETA_END, _WARM_UP = 20.0, 2.0, 0.2  # the paper's annealing
# The rest was chosen on validation images of CIFAR-10; see benchmarks/ptq.py
_BATCH = 16
_LAMBDA = 3.0
_ROUNDING_RATE = 0.1
_SCALE_RATE = 1e-3  # of a parameter's own magnitude
_TRUST = 0.9  # of the rounding that it starts from; at 2 bits .5 ends with a tenth more divergence
_CHUNK = 128  # samples that go through a block at once where nothing is trained


class SoftRounding(nn.Module):
    """Stands in for a weight's quantizer while it is decided which way each value is rounded.

    W̃ = s·clip(⌊W/s⌋ + h(V), n, p) with the rectified sigmoid h(V) = clip(σ(V)·(ζ − γ) + γ, 0, 1) (Nagel et al. 2020,
    "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv:2004.10568, eq. 21 and 23). At first h is
    W/s − ⌊W/s⌋, so that W̃ is W wherever the grid reaches. Codes {−1, +1} are two apart; everything else is the same.

    A weight that compensation has moved already may stay where it is or go a step towards W; h starts near its
    place, a tenth of the way towards W.

    Args:
        quantizer: The grid.
        weight: Any shape.
        start: A rounding to start from, on the grid; by default the nearest.
    """

    def __init__(self, quantizer: UniformQuantizer, weight: Tensor, start: Tensor | None = None) -> None:
        super().__init__()
        bits, signed, zero = quantizer.bits, quantizer.signed, quantizer.zero_point
        self._weight, self._granularity = weight.detach(), quantizer.granularity
        self._scale = quantizer.scale.detach()[:, None]
        self._lowest = torch.full_like(self._scale, -(2 ** (bits - 1)) if signed else 0)
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
        """Returns W̃; the argument is ignored, for the weight is known."""
        return self._value(self.up())

    def up(self) -> Tensor:
        """Returns h(V), how far each value is rounded up, `(groups, n)`."""
        return (torch.sigmoid(self.v) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def decided(self) -> Tensor:
        """Returns the weight on the grid, each value rounded to where its h is nearer."""
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
    """Returns a copy of `quantized` whose weights lie on their grids, rounded up or down for the least output error.

    min over V of ‖f(W x) − f(W̃ x̂)‖² + λ·Σ(1 − |2h(V) − 1|^β), ReLUs included, x̂ from the part that is quantized
    already, β annealed (Nagel et al. 2020, arXiv:2004.10568, eq. 25 and section 3.3). The quantizers give the weights
    back as they are; there is no other state.

    Deviations: layers of a residual block are decided together (BRECQ, Li et al. 2021, arXiv:2102.05426, section 3.2),
    and scales of their inputs tuned along (the same, section 3.4); the error is in units of the target's variance and
    the regulariser a mean, so that one λ fits every layer; rates are higher and steps fewer.

    Args:
        quantized: A prepared network.
        model: The float network that it was prepared from, batch norms folded alike.
        batches: Calibration inputs, each `(N, C, H, W)`; a few hundred images in all. Values of all are held at once.
        steps: For each block.
        seed: Decides which images each step sees.
        progress: Called with blocks done and blocks in all.

    Raises:
        DataError: There are no batches.
        ModelError: A weight's quantizer is not uniform, a network cannot be traced, or the two differ.
    """
    _check(quantized)
    tuned = copied(quantized).eval()
    blocks = chain_of_blocks(tuned, "AdaRound")
    references = chain_of_blocks(copied(model).eval(), "AdaRound")
    if len(blocks) != len(references):
        raise ModelError(
            f"the quantized network has {len(blocks)} blocks, the float one {len(references)}; give AdaRound the "
            "network that was prepared, batch norms folded alike"
        )
    inputs = list(batches)
    if not inputs:
        raise DataError("AdaRound needs calibration inputs, but there are no batches")
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
    """One block while its layers are tuned."""

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
        """Decides the rounding, given the block's inputs, quantized so far, and the float network's outputs."""
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
    """Falls from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def _run(block: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([block(part.clone()) for part in torch.split(x, _CHUNK)])  # a block may start in place


def _check(quantized: nn.Module) -> None:
    for name, layer in quantizable_layers(quantized):
        if not isinstance(layer, QuantConv2d | QuantLinear) or isinstance(layer.weight_quantizer, nn.Identity):
            continue
        if not isinstance(layer.weight_quantizer, UniformQuantizer):
            kind = type(layer.weight_quantizer).__name__
            raise ModelError(
                f"layer {name!r} has a {kind} for its weight; AdaRound needs a uniform grid: use scheme linear, "
                "asymmetric or power-of-two, or leave adaround out"
            )


def _uniform_layers(block: nn.Module) -> list[Quantized]:
    layers = [m for m in block.modules() if isinstance(m, QuantConv2d | QuantLinear)]
    return [layer for layer in layers if isinstance(layer.weight_quantizer, UniformQuantizer)]


def _uniform(layer: Quantized) -> UniformQuantizer:
    assert isinstance(layer.weight_quantizer, UniformQuantizer)
    return layer.weight_quantizer
