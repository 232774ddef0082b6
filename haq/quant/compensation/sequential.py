"""Rounding layer by layer on the inputs that the layers before really give."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
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
from haq.quant.quantizers.base import Quantizer
from haq.threads import in_threads, one_thread

__all__ = ["compensate_in_sequence", "compensate_together"]

_PART = 64  # samples that go through the network together: what a layer computes for so few stays near the processor
_SAMPLES = 32_768  # columns; with 8,192 a 2-bit ResNet-20 ends with 4 % more divergence
_BYTES = 2**31  # of what all parts hold at once, about
_ALIVE = 4  # times what the largest layer reads and gives

Progress = Callable[[int, int], None]
Layer = nn.Conv2d | nn.Linear


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
    return compensate_together([quantized], model, batches, progress)


def compensate_together(
    quantized: Sequence[nn.Module],
    model: nn.Module,
    batches: Iterable[Tensor],
    progress: Progress = lambda done, total: None,
) -> bool:
    """Does so for several networks that were prepared from one, which is run once for all of them.

    Args:
        quantized: Prepared networks.
        model: See `compensate_in_sequence`.
        batches: Likewise; where not all samples fit into memory for all networks, these take turns.
        progress: Likewise.

    Returns:
        See `compensate_in_sequence`.
    """
    inputs = torch.cat(list(batches))
    network = reachable(model, inputs[:1])
    exact = dict(quantizable_layers(network))
    prepared = [dict(quantizable_layers(one)) for one in quantized]
    twins = {name: [_quantized(layers.get(name)) for layers in prepared] for name in exact}
    twins = {name: found for name, found in twins.items() if any(found)}
    counted = _calls(network, {name: exact[name] for name in twins}, inputs[:2], 1 + len(quantized))
    if counted is None:
        return False
    calls, taken = counted
    fitting = max(1, int(_BYTES / taken))
    if fitting < len(inputs) and len(quantized) > 1:
        turns = [
            compensate_together([one], network, [inputs], _share(progress, number, len(quantized)))
            for number, one in enumerate(quantized)
        ]
        return all(turns)
    parts = torch.split(inputs[:fitting], _PART)
    tied = tied_layers(network)
    once = {
        name: layer for name, layer in exact.items() if calls[name] == 1 and layer not in tied and is_product(layer)
    }
    rounds = _Rounds(once, twins, len(quantized), len(parts), lambda done: progress(done, len(once)))
    return rounds.run(network, parts)


def _quantized(layer: nn.Module | None) -> Quantized | None:
    return layer if isinstance(layer, QuantConv2d | QuantLinear) else None


def _share(progress: Progress, number: int, count: int) -> Progress:
    return lambda done, total: progress(number * total + done, count * total)


@dataclass(frozen=True)
class _Here:
    """Of a part of the samples that waits at a layer: columns that the layer reads, `(groups, K, n)` each.

    Attributes:
        layer: Its name.
        exact: Of the float network.
        given: Of each quantized network.
    """

    layer: str
    exact: Tensor
    given: tuple[Tensor, ...]


class _Rounds:
    """Brings all parts to a layer, rounds it, and lets them go on.

    Args:
        layers: Name → layer of the float network, those that are rounded again.
        twins: Name → the layer in each quantized network, `None` where it is none.
        networks: How many are quantized.
        parts: How many there are.
        done: Called with the number of layers done.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        twins: Mapping[str, Sequence[Quantized | None]],
        networks: int,
        parts: int,
        done: Callable[[int], None],
    ) -> None:
        self._layers, self._twins, self._copies, self._done, self._count = layers, twins, 1 + networks, done, 0
        self._here: list[_Here | None] = [None] * parts
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
                run_sample(own, torch.cat([x] * self._copies), copied=False)
            if self._layers:
                self._leave(number)
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            self._error = self._error or error
            self._barrier.abort()

    def _taking(self, number: int, name: str, inner: Callable[..., Tensor], first: bool) -> Callable[..., Tensor]:
        """Returns what takes the place of a layer's forward pass: one copy in floating point, the others quantized."""
        twins = self._twins[name]

        def call(*args: Any, **kwargs: Any) -> Tensor:
            before, (x, *rest) = args[: int(first)], args[int(first) :] or (next(iter(kwargs.values())),)
            exact, *copies = x.chunk(self._copies)
            given = [twin.input_quantizer(part) if twin else part for twin, part in zip(twins, copies, strict=True)]
            if name in self._layers:
                self._arrive(number, name, exact, given)
            outputs = [
                _product(twin, part) if twin else inner(*before, part, *rest)
                for twin, part in zip(twins, given, strict=True)
            ]
            return torch.cat([inner(*before, exact, *rest), *outputs])

        def call_whole(*args: Any, **kwargs: Any) -> Tensor:
            whole = [inner(*args, **kwargs)]
            with self._one_at_a_time:  # while it runs, its weight is another
                whole += [twin(*args, **kwargs) if twin else whole[0] for twin in twins]
            return torch.cat([y.chunk(self._copies)[copy] for copy, y in enumerate(whole)])

        return call if all(twin is None or is_product(twin) for twin in twins) else call_whole

    def _arrive(self, number: int, name: str, exact: Tensor, given: Sequence[Tensor]) -> None:
        taken = Reads(self._layers[name], self._parts, number, _SAMPLES).taken(exact, *given)
        self._here[number] = _Here(name, taken[0], taken[1:])
        self._barrier.wait()

    def _leave(self, number: int) -> None:
        self._here[number] = None
        self._barrier.wait()

    def _round(self) -> None:
        """Rounds the layer at which all parts are."""
        names = {here.layer if here else None for here in self._here}
        if len(names) > 1:
            self._strayed = True
            raise threading.BrokenBarrierError
        name = names.pop()
        if name is None:
            return
        try:
            in_threads(partial(self._round_twin, name), range(self._copies - 1))
            self._count += 1
            self._done(self._count)
        except BaseException as error:  # a barrier would only say that it is broken
            self._error = error
            raise

    def _round_twin(self, name: str, network: int) -> None:
        layer, twin = self._layers[name], self._twins[name][network]
        if twin is None or not isinstance(quantizer := twin.weight_quantizer, Quantizer):
            return
        halves = in_threads(partial(self._read, layer, network), range(min(2, self._parts)))
        reads = halves[0].joined(*halves[1:])
        rounded = round_layer(layer, {quantizer.bits: quantizer}, reads.moments(), choose=False)[quantizer.bits]
        if rounded.codes is not None:
            twin.weight, twin.bias, twin.weight_quantizer = layer.weight, layer.bias, rounded.quantizer
            rounded.put_in(twin)

    def _read(self, layer: Layer, network: int, half: int) -> Reads:
        """Adds up every other part, always in the same order, so that sums are the same to the last digit."""
        reads = Reads(layer, self._parts)
        for here in self._here[half::2]:
            assert here is not None
            reads.add_columns(here.given[network], here.exact)
        return reads


def _calls(
    model: nn.Module, layers: Mapping[str, nn.Module], x: Tensor, copies: int
) -> tuple[Counter[str], float] | None:
    """Counts the calls of each layer, and the bytes that a sample takes, in all its copies.

    `None` where the copies of a batch do not stay apart, or a layer takes no part of them.
    """
    names = {layer: name for name, layer in layers.items()}
    calls: Counter[str] = Counter()
    apart, most = True, 1

    def count(layer: nn.Module, x: Tensor, y: Any) -> None:
        nonlocal apart, most
        calls[names[layer]] += 1
        most = max(most, x.nbytes + y.nbytes)
        apart = apart and _repeats(x, copies) and _repeats(y, copies)

    with watched(names, after=count):
        run_sample(model, torch.cat([x] * copies))
    return (calls, _ALIVE * most / len(x)) if apart else None


def _repeats(values: Tensor, copies: int) -> bool:
    """Whether values are the same so many times, one after the other."""
    size = len(values) // copies
    once = values[:size]
    return len(values) == copies * size > 0 and all(torch.equal(once, part) for part in torch.split(values, size))


def _product(layer: Quantized, x: Tensor) -> Tensor:
    """Returns the product of the layer's quantized weight with an input that is quantized already."""
    weight = layer.weight_quantizer(layer.weight)
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    stride, _, dilation = window_of(layer)
    if layer.padding_mode == "zeros" and not isinstance(layer, OwnForward) and not isinstance(layer.padding, str):
        return F.conv2d(x, weight, layer.bias, stride, layer.padding, dilation, layer.groups)
    return F.conv2d(padded(layer, x), weight, layer.bias, stride, 0, dilation, layer.groups)
