"""Outputs of a network with one layer changed, without running again what comes before the change."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers import copied, evaluating, quantizable_layers, replace_module, run_sample
from haq.quant.modules import quantized_like
from haq.search.sensitivity.graph_network import GraphNetwork

__all__ = ["Network", "network_of"]

logger = logging.getLogger(__name__)


class Network(Protocol):
    """Runs a network with one layer changed.

    Call `weights` at any time. For each batch, call `start`, then `changed` and `leave` for each layer in `order`.

    All calls need `torch.no_grad` or `torch.inference_mode`.

    Attributes:
        order: Layers in the order in which they are to be changed.
        parallel: Whether several threads may run batches at once.
    """

    order: tuple[str, ...]
    parallel: bool

    def share(self, layer: str) -> float:
        """Returns how much of the network runs again when this layer is changed, between 0 and 1."""
        ...

    def weights(self, layer: str, weight: Tensor, bias: Tensor | None) -> Any:
        """Turns another weight and bias of the layer into what `changed` takes."""
        ...

    def start(self, x: Tensor) -> tuple[Tensor, Any]:
        """Runs the float network and returns its output, and a state for the following calls."""
        ...

    def changed(self, state: Any, layer: str, weights: Any = None, quantizer: nn.Module | None = None) -> Tensor:
        """Returns the output with other weights of one layer, or with its input quantized.

        Args:
            state: From `start`.
            layer: Name.
            weights: From `weights`; by default the layer's own.
            quantizer: Of the layer's input; by default none.
        """
        ...

    def leave(self, state: Any, layer: str) -> None:
        """Drops values of the state that only this layer and earlier ones need."""
        ...


def network_of(model: nn.Module, layers: Sequence[str], sample: Tensor) -> Network:
    """Returns the fastest form of `model` that gives the same outputs for the sample.

    Args:
        model: The float network, in evaluation mode.
        layers: Names of those that will be changed.
        sample: A few inputs.

    Raises:
        ModelError: The output is not a tensor of finite numbers.
    """
    with evaluating(model):
        expected = run_sample(model, sample)
        if not isinstance(expected, Tensor) or not bool(torch.isfinite(expected).all()):
            raise ModelError(
                "the float network gives no tensor, or NaN or infinite outputs; check its weights and data"
            )
        try:
            # A view that the model takes may need the usual layout
            for channels_last in (True, False) if sample.dim() == 4 else (False,):
                network = GraphNetwork(model, layers, sample, channels_last)
                if network.gives(expected, sample):
                    return network
            reason = "its graph gives other outputs"
        except ModelError as error:
            reason = str(error)
    logger.warning("the whole network is run again for every layer and width, which is slower: %s", reason)
    return _Whole(model, layers)


class _Whole:
    """Runs the whole network again for every change."""

    parallel = False  # layers are exchanged in one copy

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        self.order = tuple(layers)
        self._model = copied(model)
        self._layers = {name: layer for name, layer in quantizable_layers(self._model) if name in self.order}

    def share(self, layer: str) -> float:
        return 1.0

    def weights(self, layer: str, weight: Tensor, bias: Tensor | None) -> Any:
        return nn.Parameter(weight, requires_grad=False), None if bias is None else nn.Parameter(bias, False)

    def start(self, x: Tensor) -> tuple[Tensor, Any]:
        return self._model(x.clone()), x

    def changed(self, state: Any, layer: str, weights: Any = None, quantizer: nn.Module | None = None) -> Tensor:
        old = self._layers[layer]
        new = quantized_like(old, nn.Identity(), quantizer or nn.Identity()).eval()
        if weights is not None:
            new.weight, new.bias = weights
        try:
            self._model = replace_module(self._model, old, new)
            result: Tensor = self._model(state.clone())
        finally:
            self._model = replace_module(self._model, new, old)
        return result

    def leave(self, state: Any, layer: str) -> None:
        pass
