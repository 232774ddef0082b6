"""Rounding layer by layer on the inputs that the layers before really give."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers import quantizable_layers, reachable, run_sample, watched
from haq.layers.copying import sharing
from haq.layers.own_forward import OwnForward, window_of
from haq.layers.running import put_in_place, tied_layers
from haq.quant.compensation.layers import round_layer
from haq.quant.compensation.moments import Reads, is_product, padded
from haq.quant.modules import QuantConv2d, Quantized, QuantLinear
from haq.quant.quantizer import Quantizer
from haq.threads import one_thread

__all__ = ["compensate_in_sequence"]

_PART = 64  # samples that go through the network together: what a layer computes for so few stays near the processor
_BYTES = 2**31  # of what all parts hold at once, about
_ALIVE = 4  # times what the largest layer reads and gives

Progress = Callable[[int, int], None]
Layer = nn.Conv2d | nn.Linear
Taken = tuple[Tensor, Tensor | None]


def compensate_in_sequence(
    quantized: nn.Module, model: nn.Module, batches: Iterable[Tensor], progress: Progress = lambda done, total: None
) -> bool:
    """Rounds the weights of a prepared network again, in place, so that they make up for what came before them, too.

    Every layer is rounded in the order of calls, for the inputs that the quantized layers before it give, towards the
    outputs of the float network (Qronos, Zhang et al. 2025, arXiv:2505.11695). One run does it: every batch holds its
    samples twice, and the layers compute the first half in floating point and the second half quantized. Parts of the
    samples run in threads that wait for each other at every layer. So it works for every network that treats samples
    apart; where halves do not stay apart, as when a network has its samples along another dimension, nothing is
    changed; where parts call their layers in different orders, only the layers before that are. Layers that are called
    more than once keep their rounding, and so do those whose weight another module holds.

    Args:
        quantized: A prepared network with quantizers for all its widths.
        model: The float network that it was prepared from, batch norms folded alike.
        batches: Inputs, each `(N, C, H, W)`; as many are taken as the network can run at once in 2 GiB, about.
        progress: Called with layers done and layers in all.

    Returns:
        Whether the network keeps its samples apart, and calls its layers in one order.
    """
    inputs = torch.cat(list(batches))
    network = reachable(model, inputs[:1])
    exact = dict(quantizable_layers(network))
    twins = {
        name: twin
        for name, twin in quantizable_layers(quantized)
        if name in exact and isinstance(twin, QuantConv2d | QuantLinear)
    }
    found = _calls(network, {name: exact[name] for name in twins}, inputs[:2])
    if found is None:
        return False
    calls, taken = found
    parts = torch.split(inputs[: max(1, int(_BYTES / taken))], _PART)
    tied = tied_layers(network)
    once = {
        name: layer for name, layer in exact.items() if calls[name] == 1 and layer not in tied and is_product(layer)
    }
    rounds = _Rounds(once, twins, len(parts), lambda done: progress(done, len(once)))
    return rounds.run(network, parts)


class _Rounds:
    """Brings all parts to a layer, rounds it, and lets them go on.

    Args:
        layers: Name → layer of the float network, those that are rounded again.
        twins: Name → quantized layer.
        parts: How many there are.
        done: Called with the number of layers done.
    """

    def __init__(
        self, layers: Mapping[str, Layer], twins: Mapping[str, Quantized], parts: int, done: Callable[[int], None]
    ) -> None:
        self._layers, self._twins, self._done, self._count = layers, twins, done, 0
        self._here: list[tuple[str, Taken] | None] = [None] * parts
        self._barrier = threading.Barrier(parts, action=self._round)
        self._parts, self._strayed = parts, False
        self._error: BaseException | None = None
        self._one_at_a_time = threading.Lock()

    def run(self, network: nn.Module, parts: Iterable[Tensor]) -> bool:
        """Runs the network on all parts; returns whether all of them called the layers in the same order."""
        with one_thread():
            threads = [
                threading.Thread(target=self._run, args=(network, number, x), daemon=True)
                for number, x in enumerate(parts)
            ]
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    thread.join()
            except BaseException:
                self._barrier.abort()
                raise
        if self._error is not None:
            raise self._error
        return not self._strayed

    def _run(self, network: nn.Module, number: int, x: Tensor) -> None:
        try:
            own = sharing(network)  # a forward pass may keep values in its modules
            with ExitStack() as stack:
                for name, layer in quantizable_layers(own):
                    if name in self._twins:
                        place = "product" if isinstance(layer, OwnForward) else "forward"
                        take = self._taking(number, name, getattr(layer, place), first=place == "product")
                        stack.enter_context(put_in_place(layer, place, take))
                run_sample(own, torch.cat([x, x]), copied=False)
            if self._layers:
                self._leave(number)
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            self._error = self._error or error
            self._barrier.abort()

    def _taking(self, number: int, name: str, inner: Callable[..., Tensor], first: bool) -> Callable[..., Tensor]:
        """Returns what takes the place of a layer's forward pass: one half in floating point, one quantized."""
        twin = self._twins[name]

        def call(*args: Any, **kwargs: Any) -> Tensor:
            before, (x, *rest) = args[: int(first)], args[int(first) :] or (next(iter(kwargs.values())),)
            half = len(x) // 2
            given = twin.input_quantizer(x[half:])
            if name in self._layers:
                self._arrive(number, name, x[:half], given)
            return torch.cat([inner(*before, x[:half], *rest), _product(twin, given)])

        def call_whole(*args: Any, **kwargs: Any) -> Tensor:
            y = inner(*args, **kwargs)
            with self._one_at_a_time:  # while it runs, its weight is another
                quantized = twin(*args, **kwargs)
            return torch.cat([y[: len(y) // 2], quantized[len(y) // 2 :]])

        return call if is_product(twin) else call_whole

    def _arrive(self, number: int, name: str, exact: Tensor, given: Tensor) -> None:
        self._here[number] = name, Reads(self._layers[name], self._parts, number).taken(given, exact)
        self._barrier.wait()

    def _leave(self, number: int) -> None:
        self._here[number] = None
        self._barrier.wait()

    def _round(self) -> None:
        """Rounds the layer at which all parts are."""
        names = {here[0] if here else None for here in self._here}
        if len(names) > 1:
            self._strayed = True
            raise threading.BrokenBarrierError
        name = names.pop()
        if name is None:
            return
        try:
            layer, twin = self._layers[name], self._twins[name]
            reads = Reads(layer, self._parts)
            for here in self._here:  # always in the same order, so that sums are the same to the last digit
                assert here is not None
                reads.add_columns(*here[1])
            quantizer = twin.weight_quantizer
            if isinstance(quantizer, Quantizer):
                rounded = round_layer(layer, {quantizer.bits: quantizer}, reads.moments(), choose=False)[quantizer.bits]
                if rounded.codes is not None:
                    twin.weight, twin.bias, twin.weight_quantizer = layer.weight, layer.bias, rounded.quantizer
                    rounded.put_in(twin)
            self._count += 1
            self._done(self._count)
        except BaseException as error:  # a barrier would only say that it is broken
            self._error = error
            raise


def _calls(model: nn.Module, layers: Mapping[str, nn.Module], x: Tensor) -> tuple[Counter[str], float] | None:
    """Counts the calls of each layer, and the bytes that a sample takes, twice.

    `None` where the halves of a batch do not stay apart, or a layer takes no half.
    """
    names = {layer: name for name, layer in layers.items()}
    calls: Counter[str] = Counter()
    apart, most = True, 1

    def count(layer: nn.Module, x: Tensor, y: Any) -> None:
        nonlocal apart, most
        calls[names[layer]] += 1
        most = max(most, x.nbytes + y.nbytes)
        for values in (x, y):
            half = len(values) // 2
            apart = apart and len(values) == 2 * half > 0 and torch.equal(values[:half], values[half:])

    with watched(names, after=count):
        run_sample(model, torch.cat([x, x]))
    return (calls, _ALIVE * most / len(x)) if apart else None


def _product(layer: Quantized, x: Tensor) -> Tensor:
    """Returns the product of the layer's quantized weight with an input that is quantized already."""
    weight = layer.weight_quantizer(layer.weight)
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    stride, _, dilation = window_of(layer)
    if layer.padding_mode == "zeros" and not isinstance(layer, OwnForward) and not isinstance(layer.padding, str):
        return F.conv2d(x, weight, layer.bias, stride, layer.padding, dilation, layer.groups)
    return F.conv2d(padded(layer, x), weight, layer.bias, stride, 0, dilation, layer.groups)
