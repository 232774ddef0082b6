"""Bias correction: subtracts the mean error that quantization adds to a layer's outputs from the layer's bias."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from haq.errors import ModelError, did_you_mean
from haq.layers import copied, fresh, quantizable_layers, reachable, run_sample, watched
from haq.layers.kinds import kind_of
from haq.layers.running import groups_of
from haq.quant.folding import fold_batch_norm
from haq.quant.graph import module_of, trace_graph
from haq.quant.modules import Quantized
from haq.quant.ptq.statistics import input_statistics

__all__ = ["correct_bias", "correct_bias_analytic", "output_means"]

_SAMPLE = 2  # inputs that the network is traced with

logger = logging.getLogger(__name__)


def correct_bias(quantized: nn.Module, model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Returns a copy of `quantized` whose layers have the float network's mean output in every channel.

    E[ŷ] − E[y] is subtracted from the bias, layer by layer in the order of execution, so that each layer gets the
    outputs of the corrected layers before it (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization
    and Bias Correction", arXiv:1906.04721, appendix D). Layers that run several times are not corrected.

    Args:
        quantized: A prepared network.
        model: The float network that it was prepared from, with the same batch norms folded.
        batches: Inputs, each `(N, C, H, W)`. The values of all of them are held in memory at once.

    Raises:
        ModelError: The network cannot be traced, or has layers that `model` lacks.
    """
    corrected = copied(quantized).eval()
    inputs = list(batches)
    network = trace_graph(corrected, "bias correction", inputs[0][:_SAMPLE] if inputs else None, any_batch=True)
    means = output_means(model, inputs)
    runs = [fx.Interpreter(network) for _ in inputs]
    for run, x in zip(runs, inputs, strict=True):
        run.args_iter = iter((fresh(x),))
    calls = Counter(node.target for node in network.graph.nodes)
    with torch.no_grad():
        for node in network.graph.nodes:  # each operation runs on all batches before the next one
            values = [run.run_node(node) for run in runs]
            layer = module_of(node, network)
            if isinstance(layer, Quantized) and hasattr(layer, "bias") and calls[node.target] == 1:
                values = _correct(layer, str(node.target), values, means)
            for run, value in zip(runs, values, strict=True):
                run.env[node] = value
                for read in run.user_to_last_uses.get(node, ()):
                    del run.env[read]
    return corrected


def _correct(layer: Quantized, name: str, outputs: list[Tensor], means: dict[str, Tensor]) -> list[Tensor]:
    """Corrects the bias of a layer, given its outputs, and returns the corrected outputs."""
    if name not in means:
        raise ModelError(f"layer {name!r} is not in the float network{did_you_mean(name, means)}")
    count = sum(map(len, outputs))
    mean = torch.stack([kind_of(layer).channel_mean(y) * (len(y) / count) for y in outputs]).sum(0)
    error = mean - means[name]
    _subtract(layer, error)
    return [y - kind_of(layer).along_channels(error, y) for y in outputs]


def output_means(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Returns the mean output of every layer by channel over the batches, `(out_channels,)` each.

    Args:
        model: Any network; layers that do not run are missing in the result.
        batches: Inputs, each `(N, C, H, W)`.
    """
    sums: dict[nn.Module, tuple[Tensor, int]] = {}

    def add(module: nn.Module, x: Tensor, output: Tensor) -> None:
        total, count = sums.get(module, (torch.zeros(()), 0))
        sums[module] = total + kind_of(module).channel_mean(output) * len(output), count + len(output)

    layers = dict(quantizable_layers(model))
    with watched(layers.values(), after=add):
        for batch in batches:
            run_sample(model, batch)
    return {name: sums[layer][0] / sums[layer][1] for name, layer in layers.items() if layer in sums}


def correct_bias_analytic(quantized: nn.Module, model: nn.Module, sample: Tensor) -> nn.Module:
    """Returns a copy of `quantized` whose biases compensate for the rounding of weights, without data.

    A weight error ε shifts the mean output by E[εx] = ε·E[x]. E[x] of an input channel follows from the batch norm and
    the ReLU before the layer, as the mean of a clipped normal distribution (arXiv:1906.04721, section 4.2.1,
    eq. 17–19). After a sum of branches the means add up, and so do the variances, as if the branches were independent.
    Layers whose input cannot be traced to batch norms are not corrected, and are logged. This ignores errors from
    rounding activations, which `correct_bias` includes.

    Args:
        quantized: A network prepared from `model` with its batch norms folded.
        model: The float network with its batch norms.
        sample: One input, `(1, C, H, W)`, for folding.

    Raises:
        ModelError: The float network cannot be traced, or lacks layers of `quantized`.
    """
    model, corrected = reachable(model, sample), copied(quantized).eval()
    floats = dict(quantizable_layers(fold_batch_norm(model, sample)))
    statistics = input_statistics(model, sample)
    left = []
    for name, layer in quantizable_layers(corrected):
        if not isinstance(layer, Quantized) or not hasattr(layer, "bias"):
            continue
        if name not in floats:
            raise ModelError(f"layer {name!r} is not in the float network{did_you_mean(name, floats)}")
        if name not in statistics or not statistics[name].exact:
            left.append(name)
            continue
        mean, _ = statistics[name].moments()
        with torch.no_grad():
            error = layer.weight_quantizer(layer.weight) - floats[name].weight
            # Start from the float bias: compensated rounding may have subtracted the mean error on its samples
            layer.bias = floats[name].bias
            _subtract(layer, _mean_output(layer, error, mean))
    if left:
        logger.info(
            "%d layers are not corrected: no batch norm gives their input's mean: %s", len(left), ", ".join(left)
        )
    return corrected


def _mean_output(layer: Quantized, weight: Tensor, mean: Tensor) -> Tensor:
    """Returns the mean outputs of a weight for inputs with these channel means, `(out_channels,)`; ignores padding."""
    groups = groups_of(layer)
    taps = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    return torch.einsum("goc,gc->go", taps.view(groups, -1, taps.shape[1]), mean.view(groups, -1)).flatten()


def _subtract(layer: Quantized, error: Tensor) -> None:
    bias = -error if layer.bias is None else layer.bias.detach() - error
    layer.bias = cast(Any, nn.Parameter(bias))
