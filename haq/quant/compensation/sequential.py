"""Rounding layer by layer on the inputs that the layers before really give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers import quantizable_layers, reachable, run_sample, watched
from haq.layers.own_forward import window_of
from haq.layers.running import tied_layers
from haq.quant.compensation.layers import round_layer
from haq.quant.compensation.moments import Reads, is_product, padded
from haq.quant.modules import QuantConv2d, Quantized, QuantLinear
from haq.quant.quantizer import Quantizer

__all__ = ["compensate_in_sequence"]

_BYTES = 2**31  # of what a network holds of all samples at once, about
_ALIVE = 4  # times what the largest layer reads and gives

Progress = Callable[[int, int], None]


def compensate_in_sequence(
    quantized: nn.Module, model: nn.Module, batches: Iterable[Tensor], progress: Progress = lambda done, total: None
) -> bool:
    """Rounds the weights of a prepared network again, in place, so that they make up for what came before them, too.

    Every layer is rounded in the order of calls, for the inputs that the quantized layers before it give, towards the
    outputs of the float network (Qronos, Zhang et al. 2025, arXiv:2505.11695). One run does it: each batch holds all
    samples twice, and the layers compute the first half in floating point and the second half quantized. So it works
    for every network that treats samples apart; where halves do not stay apart, as when a network has its samples along
    another dimension, nothing is changed. Layers that are called more than once keep their rounding, and so do those whose
    weight another module holds, too.

    Args:
        quantized: A prepared network with quantizers for all its widths.
        model: The float network that it was prepared from, batch norms folded alike.
        batches: Inputs, each `(N, C, H, W)`; as many are taken as the network can run at once in 2 GiB, about.
        progress: Called with layers done and layers in all.

    Returns:
        Whether the network keeps its samples apart.
    """
    inputs = torch.cat(list(batches))
    network = reachable(model, inputs[:1])
    exact = dict(quantizable_layers(network))
    twins = {
        exact[name]: twin
        for name, twin in quantizable_layers(quantized)
        if name in exact and isinstance(twin, QuantConv2d | QuantLinear)
    }
    found = _calls(network, list(twins), inputs[:2])
    if found is None:
        return False
    calls, taken = found
    tied = tied_layers(network)
    inputs = inputs[: max(1, int(_BYTES / taken))]
    done = 0

    def second_half(layer: Any, x: Tensor, y: Tensor) -> Tensor:
        nonlocal done
        twin, half = twins[layer], len(x) // 2
        given = twin.input_quantizer(x[half:])
        alone = calls[layer] == 1 and layer not in tied
        if alone and is_product(layer) and isinstance(twin.weight_quantizer, Quantizer):
            reads = Reads(layer, 1)
            reads.add(given, x[:half])
            width = twin.weight_quantizer.bits
            rounded = round_layer(layer, {width: twin.weight_quantizer}, reads.moments())[width]
            if rounded.codes is not None:
                twin.weight = layer.weight
                twin.bias = layer.bias
                twin.weight_quantizer = rounded.quantizer
                rounded.put_in(twin)
        done += 1
        progress(done, sum(calls.values()))
        return torch.cat([y[:half], _product(twin, given) if is_product(layer) else twin(x[half:])])

    with watched(twins, after=second_half):
        run_sample(network, torch.cat([inputs, inputs]))
    return True


def _calls(model: nn.Module, layers: list[nn.Module], x: Tensor) -> tuple[Counter[nn.Module], float] | None:
    """Counts the calls of each layer, and the bytes that a sample takes, twice.

    `None` where the halves of a batch do not stay apart, or a layer takes no half.
    """
    calls: Counter[nn.Module] = Counter()
    apart, most = True, 1

    def count(layer: nn.Module, x: Tensor, y: Any) -> None:
        nonlocal apart, most
        calls[layer] += 1
        most = max(most, x.nbytes + y.nbytes)
        for values in (x, y):
            half = len(values) // 2
            apart = apart and len(values) == 2 * half > 0 and torch.equal(values[:half], values[half:])

    with watched(layers, after=count):
        run_sample(model, torch.cat([x, x]))
    return (calls, _ALIVE * most / len(x)) if apart else None


def _product(layer: Quantized, x: Tensor) -> Tensor:
    """Returns the product of the layer's quantized weight with an input that is quantized already."""
    weight = layer.weight_quantizer(layer.weight)
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    stride, _, dilation = window_of(layer)
    return F.conv2d(padded(layer, x), weight, layer.bias, stride, 0, dilation, layer.groups)
