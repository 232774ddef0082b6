"""Checks that quantizers reach all layers of a network, before it is searched, quantized, measured or exported."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers import LayerSpec, copied, quantizable_layers, reachable, replace_modules, run_sample, trace, watched
from haq.layers.running import Sample, same_randomness
from haq.quant.modules import quantized_like
from haq.torch_internals import tree_leaves

__all__ = ["reached"]


class _Probe(nn.Module):
    """A quantizer that changes nothing and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def reached(model: nn.Module, sample: Sample) -> tuple[nn.Module, list[LayerSpec]]:
    """Returns the network to work with and its layers, after a check that quantizers reach every layer.

    Quantizers that change nothing are put into a copy. Its outputs must equal those of the float network to the bit, so
    no layer has lost its own forward pass. Each quantizer must be called as often as its layer, so no call bypasses it.
    Both are checked as the network is scored: in evaluation mode, without gradients and without hooks.

    Args:
        model: Any network.
        sample: One input, as for `haq.layers.trace`.

    Returns:
        `reachable(model, sample)` and its `trace`.

    Raises:
        ModelError: The model fails on the sample, or a layer cannot be reached; the message names it.
    """
    network = reachable(model, sample)
    specs = trace(network, sample)
    probed, probes = _probed(network, [spec.name for spec in specs])
    expected, seen = _run(network, sample)
    with same_randomness():
        found = run_sample(probed, sample)
    calls = Counter(name for name, _ in seen)
    for name, pair in probes.items():
        for what, probe in zip(("weight", "input"), pair, strict=True):
            if isinstance(probe, _Probe) and probe.calls != calls[name]:
                raise ModelError(
                    f"layer {name!r} is called {calls[name]} times, but the quantizer of its {what} {probe.calls} "
                    f"times: {type(model).__name__} has another reference to the layer; call it as an attribute of its "
                    "module"
                )
    if not _equal(expected, found):
        raise ModelError(_difference(probed, sample, seen))
    return network, specs


def _run(network: nn.Module, sample: Sample) -> tuple[Any, list[tuple[str, Any]]]:
    """Returns the network's output, and the outputs of its layers in the order of their calls."""
    names = {layer: name for name, layer in quantizable_layers(network)}
    seen: list[tuple[str, Any]] = []
    with same_randomness(), watched(names, after=lambda layer, x, y: seen.append((names[layer], y))):
        return run_sample(network, sample), seen


def _equal(a: Any, b: Any) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in pairs if isinstance(x, Tensor))


def _difference(probed: nn.Module, sample: Sample, seen: list[tuple[str, Any]]) -> str:
    """Returns a message with the first layer whose outputs differ, if there is one."""
    for (name, y), (_, other) in zip(seen, _run(probed, sample)[1], strict=False):
        if not _equal(y, other):
            return (
                f"layer {name!r} gives different outputs with quantizers that change nothing, so its own forward pass "
                "is lost; make it a plain layer of PyTorch"
            )
    return (
        "the network gives different outputs with quantizers that change nothing, but its layers do not; does its "
        "forward pass check the type of a layer, or keep values between calls?"
    )


def _probed(network: nn.Module, names: list[str]) -> tuple[nn.Module, dict[str, tuple[nn.Module, nn.Module]]]:
    """Returns a copy with probes, and the probes of each layer's weight and input; indices have none."""
    probed = copied(network)
    layers = dict(quantizable_layers(probed))
    places = {layers[name]: quantized_like(layers[name], _Probe(), _Probe()) for name in names}
    probes = {name: (places[layers[name]].weight_quantizer, places[layers[name]].input_quantizer) for name in names}
    return replace_modules(probed, places), probes
