"""Rounds layer by layer, for the inputs that the quantized layers before actually produce."""

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

from haq.layers import quantizable_layers, reachable, run_sample, watched
from haq.layers.copying import sharing
from haq.layers.kinds import bias_of, kind_of
from haq.layers.own_forward import OwnForward
from haq.layers.running import put_in_place, tied_layers
from haq.quant.compensation.layers import round_layer
from haq.quant.compensation.moments import Reads, is_product
from haq.quant.modules import Quantized
from haq.quant.quantizers.base import Quantizer
from haq.threads import in_threads, one_thread

__all__ = ["compensate_in_sequence", "compensate_together"]

_PART = 64  # samples that run together: so few that a layer's outputs stay in the processor's cache
_SAMPLES = 32_768  # columns; with 8,192 a 2-bit ResNet-20 ends with 4 % more divergence
_BYTES = 2**31  # that all parts together may take, approximately
_ALIVE = 4  # memory of a part, as a multiple of the largest layer's input and output

Progress = Callable[[int, int], None]


def compensate_in_sequence(
    quantized: nn.Module, model: nn.Module, batches: Iterable[Tensor], progress: Progress = lambda done, total: None
) -> bool:
    """Rounds the weights of a prepared network again, in place, so that they also compensate for earlier layers.

    Layers are rounded in the order of their calls, for the inputs that the quantized layers before them produce,
    towards the outputs of the float network (Qronos, Zhang et al. 2025, arXiv:2505.11695). This takes a single run:
    every batch holds its samples twice, and layers compute the first half in floating point and the second half
    quantized. Parts of the samples run in threads that wait for each other at every layer.

    The network must process samples independently. If the halves mix, for example because samples lie along another
    dimension, nothing is changed. If parts call their layers in different orders, only the layers before that point are
    changed. Layers that are called several times or share their weight with another module keep their rounding.

    Args:
        quantized: A prepared network with quantizers for all its widths.
        model: The float network that it was prepared from, with the same batch norms folded.
        batches: Inputs, each `(N, C, H, W)`; only as many samples are used as can run at once in about 2 GiB.
        progress: Called with the number of layers done and in total.

    Returns:
        Whether the network processes samples independently and calls its layers in one order.
    """
    return compensate_together([quantized], model, batches, progress)


def compensate_together(
    quantized: Sequence[nn.Module],
    model: nn.Module,
    batches: Iterable[Tensor],
    progress: Progress = lambda done, total: None,
) -> bool:
    """Applies `compensate_in_sequence` to several networks that were prepared from one, in a single run.

    Args:
        quantized: Prepared networks.
        model: As for `compensate_in_sequence`.
        batches: As for `compensate_in_sequence`; the networks are rounded one by one if all samples do not fit into
            memory for all networks.
        progress: As for `compensate_in_sequence`.

    Returns:
        As for `compensate_in_sequence`.
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
    return layer if isinstance(layer, Quantized) else None


def _share(progress: Progress, number: int, count: int) -> Progress:
    return lambda done, total: progress(number * total + done, count * total)


@dataclass(frozen=True)
class _Here:
    """A part of the samples that waits at a layer, with columns of the layer's inputs, `(groups, K, n)` each.

    Attributes:
        layer: Name of the layer.
        exact: Columns in the float network.
        given: Columns in each quantized network.
    """

    layer: str
    exact: Tensor
    given: tuple[Tensor, ...]


class _Rounds:
    """Lets all parts run up to a layer, rounds it, and lets them continue.

    Args:
        layers: Name → layer of the float network, for the layers to round again.
        twins: Name → the layer in each quantized network, `None` if it is not quantized there.
        networks: Number of quantized networks.
        parts: Number of parts.
        done: Called with the number of layers done.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
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
            own = sharing(network)  # a forward pass may store values in its modules
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
        """Returns a replacement for a layer's forward pass: the first copy in floating point, the others quantized."""
        twins = self._twins[name]

        def call(*args: Any, **kwargs: Any) -> Tensor:
            before, (x, *rest) = args[: int(first)], args[int(first) :] or (next(iter(kwargs.values())),)
            exact, *copies = x.chunk(self._copies)
            given = [twin.input_quantizer(part) if twin else part for twin, part in zip(twins, copies, strict=True)]
            if name in self._layers:
                self._arrive(number, name, exact, given)
            outputs = [
                _product(twin, part, before, rest) if twin else inner(*before, part, *rest)
                for twin, part in zip(twins, given, strict=True)
            ]
            return torch.cat([inner(*before, exact, *rest), *outputs])

        def call_whole(*args: Any, **kwargs: Any) -> Tensor:
            whole = [inner(*args, **kwargs)]
            with self._one_at_a_time:  # the weight is substituted while the layer runs
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
        """Rounds the layer that all parts have reached."""
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
        except BaseException as error:  # the barrier itself only reports that it is broken
            self._error = error
            raise

    def _round_twin(self, name: str, network: int) -> None:
        layer: Any = self._layers[name]
        twin = self._twins[name][network]
        if twin is None or not isinstance(quantizer := twin.weight_quantizer, Quantizer):
            return
        halves = in_threads(partial(self._read, layer, network), range(min(2, self._parts)))
        reads = halves[0].joined(*halves[1:])
        rounded = round_layer(layer, {quantizer.bits: quantizer}, reads.moments(), choose=False)[quantizer.bits]
        if rounded.codes is not None:
            twin.weight, twin.weight_quantizer = layer.weight, rounded.quantizer
            if hasattr(layer, "bias"):
                twin.bias = layer.bias
            rounded.put_in(twin)

    def _read(self, layer: nn.Module, network: int, half: int) -> Reads:
        """Adds up every second part, always in the same order, so that sums are reproducible to the last bit."""
        reads = Reads(layer, self._parts)
        for here in self._here[half::2]:
            assert here is not None
            reads.add_columns(here.given[network], here.exact)
        return reads


def _calls(
    model: nn.Module, layers: Mapping[str, nn.Module], x: Tensor, copies: int
) -> tuple[Counter[str], float] | None:
    """Returns the number of calls of each layer, and the bytes that a sample takes in all its copies.

    Returns `None` if the copies of a batch mix, or a layer does not get them one after the other.
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
    """Whether the values are `copies` equal parts, one after the other."""
    size = len(values) // copies
    once = values[:size]
    return len(values) == copies * size > 0 and all(torch.equal(once, part) for part in torch.split(values, size))


def _product(layer: Quantized, x: Tensor, before: Sequence[Any], rest: Sequence[Any]) -> Tensor:
    """Returns the product of the layer's quantized weight with an input that is already quantized.

    Args:
        layer: The layer.
        x: Its input.
        before: The function of the product, if the layer has a forward pass of its own.
        rest: Further arguments of the call.
    """
    weight = layer.weight_quantizer(layer.weight)
    if before:
        y: Tensor = before[0](x, weight, layer.bias, *rest)
        return y
    return kind_of(layer).run(layer, x, weight, bias_of(layer), *rest)
