"""Sets up quantizers for every layer and width once, from the float network and a few batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from haq.layers import quantizable_layers, reachable, run_sample, watched
from haq.layers.kinds import kind_of
from haq.layers.running import tied_layers
from haq.quant.compensation import Moments, Reads, Rounded, round_layer
from haq.quant.compensation.care import Plan, rounding_plans
from haq.quant.compensation.moments import is_product, moments_bytes
from haq.quant.modules import Lookups
from haq.quant.schemes import Scheme, get_scheme
from haq.threads import in_threads

__all__ = ["Calibration", "LayerQuantizers", "Samples", "calibrate", "input_samples"]

_MOMENTS_BYTES = 2**30  # for the moments that are held at once
_VALUES_PER_LAYER = 32_768  # enough that the best clip of a layer's inputs varies by under 1 % between draws


@dataclass(frozen=True)
class LayerQuantizers:
    """Quantizers of one layer by width; networks get copies of them.

    Attributes:
        weights: Width → the rounded weight with its quantizer.
        inputs: Width → quantizer of the input.
    """

    weights: Mapping[int, Rounded]
    inputs: Mapping[int, nn.Module]


Calibration = Mapping[str, LayerQuantizers]
"""Layer name → its quantizers."""

Progress = Callable[[str, int, int], None]
"""Called with `calibrate` or `round`, how much of it is done, and how much there is; perhaps from other threads."""


def calibrate(
    model: nn.Module,
    batches: Iterable[Tensor],
    bits: Iterable[int],
    scheme: str | Scheme = "linear",
    compensated: bool = True,
    progress: Progress = lambda task, done, total: None,
) -> Calibration:
    """Sets up the quantizers of all layers from their weights and inputs, and rounds the weights.

    Every policy over the same widths can then be prepared without running the float network again. Rounding is
    compensated; see `haq.quant.compensation`. In large networks the most expensive layers are rounded with less care,
    by counts alone; see `haq.quant.compensation.care`.

    Args:
        model: The float network.
        batches: Inputs, each `(N, …)`.
        bits: Widths to set up.
        scheme: Scheme for weights and activations.
        compensated: Whether weights compensate for each other's errors; otherwise each is rounded to the nearest level.
        progress: Called with the samples that the network has processed, and with the percentage of rounding done.

    Returns:
        Quantizers of the layers that are called for the batches.
    """
    chosen = get_scheme(scheme) if isinstance(scheme, str) else scheme
    widths = sorted(set(bits))
    inputs = list(batches)
    network = reachable(model, inputs[0][:1]) if inputs else reachable(model)
    layers = dict(quantizable_layers(network))
    tied, plans = tied_layers(network), rounding_plans(layers, len(widths))
    portions = [*_portions(layers, plans)]
    read_samples = _Sum(len(portions) * sum(map(len, inputs)), 0, lambda done, all_: progress("calibrate", done, all_))
    work = _Sum(sum(plan.work for plan in plans.values()), 100, lambda done, all_: progress("round", done, all_))

    def ready(named: tuple[str, Samples]) -> tuple[str, LayerQuantizers]:
        name, read = named
        layer = layers[name]
        weights = {width: chosen.weight_quantizer(layer.weight.detach(), width, read.reads) for width in widths}
        own = compensated and layer not in tied  # other modules need a shared weight unchanged
        rounded = round_layer(layer, weights, read.moments if own else None, care=plans[name].care)
        quantizers = LayerQuantizers(rounded, {width: _inputs(layer, chosen, read, width) for width in widths})
        work.add(plans[name].work)
        return name, quantizers

    found: dict[str, LayerQuantizers] = {}
    for names in portions:
        blocks = {name: plans[name].blocks for name in names}
        found |= in_threads(ready, input_samples(network, inputs, names, blocks, read_samples.add).items())
    work.finish()
    return {name: found[name] for name in layers if name in found}


def _inputs(layer: nn.Module, scheme: Scheme, read: Samples, width: int) -> nn.Module:
    return scheme.input_quantizer(read.values, width) if kind_of(layer).reads_values else Lookups(width)


class _Sum:
    """Adds up work of several threads.

    Args:
        total: All work.
        steps: Number of reports, or 0 to report the work itself.
        report: Called with what is done, and all.
    """

    def __init__(self, total: float, steps: int, report: Callable[[int, int], None]) -> None:
        self._total, self._steps, self._report = total, steps or int(total), report
        self._done, self._lock = 0.0, threading.Lock()

    def add(self, work: float) -> None:
        """Adds work that is done."""
        with self._lock:
            self._done += work
            self._report(min(int(self._steps * self._done / self._total), self._steps - 1), self._steps)

    def finish(self) -> None:
        """Reports that all is done."""
        self._report(self._steps, self._steps)


def _portions(layers: Mapping[str, nn.Module], plans: Mapping[str, Plan]) -> Iterator[list[str]]:
    """Yields names of layers whose moments are held in memory at once; the network runs once for each portion."""
    names: list[str] = []
    held = 0
    for name, layer in layers.items():
        needed = moments_bytes(layer, plans[name].blocks)
        if names and held + needed > _MOMENTS_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += needed
    yield names


@dataclass(frozen=True)
class Samples:
    """Samples of a layer's inputs.

    Attributes:
        values: Some values of every sample, with its smallest and its largest, `(samples, n)`; none if inputs are
            indices.
        reads: Columns that the layer's weight, as a matrix, is multiplied by, `(groups, n, columns)`; `None` if it is
            no product.
        moments: Moments of all such columns; `None` if the layer is not a product with its weight, or an input is not
            finite.
    """

    values: Tensor
    reads: Tensor | None
    moments: Moments | None


def input_samples(
    model: nn.Module,
    batches: Iterable[Tensor],
    layers: Collection[str] | None = None,
    blocks: Mapping[str, int] | None = None,
    processed: Callable[[int], None] = lambda samples: None,
) -> dict[str, Samples]:
    """Returns samples of each layer's inputs.

    Args:
        model: The float network.
        batches: Inputs of the network, each `(N, …)`.
        layers: Names of the layers; by default all.
        blocks: Layer name → blocks of columns for its moments, by default 1; see `Reads`.
        processed: Called with the size of each batch that the network has processed.
    """
    inputs = list(batches)
    per_sample = max(8, _VALUES_PER_LAYER // max(sum(map(len, inputs)), 1))
    values: dict[nn.Module, list[Tensor]] = {}
    reads: dict[nn.Module, Reads] = {}

    def keep(module: nn.Module, x: Tensor) -> None:
        values.setdefault(module, [])
        if not kind_of(module).reads_values:
            return
        x = x.detach().float()
        flat = x.flatten(1)
        # An odd stride visits all channels and positions, because their counts are mostly powers of two
        stride = max(1, flat.shape[1] // per_sample) | 1
        low, high = flat.aminmax(dim=1, keepdim=True)
        values[module].append(torch.cat([flat[:, ::stride], low, high], 1))
        if is_product(module):
            if module not in reads:
                reads[module] = Reads(module, len(inputs), blocks=(blocks or {}).get(names[module], 1))
            reads[module].add(x)

    names: dict[nn.Module, str] = {
        module: name for name, module in quantizable_layers(model) if layers is None or name in layers
    }
    with watched(names, before=keep):
        for batch in inputs:
            run_sample(model, batch)
            processed(len(batch))

    def samples(module: nn.Module) -> Samples:
        given, read = torch.cat(values[module]) if values[module] else torch.empty(0), reads.get(module)
        return Samples(given, read.shown, read.moments()) if read else Samples(given, None, None)

    return {names[module]: samples(module) for module in values}
