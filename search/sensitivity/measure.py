"""Measures the effect of quantizing the weights or the input of one layer, with all other layers in floating point.

One measure is an estimate for all layers and widths at once, three compare the network's outputs with the float
network's, and the last predicts the loss from its curvature.

- `fisher`: the divergence `kl` to second order, from one backward pass; see `haq.search.sensitivity.fisher`.
- `kl`: mean Kullback-Leibler divergence of the quantized network's class probabilities from the float network's, in
  nats (ZeroQ, Cai et al. 2020, arXiv:2001.00281). It needs no labels.
- `loss`: rise of the mean cross-entropy, in nats; chance can make it negative.
- `sqnr`: 10·log10(Σ|y|² / Σ|y − ŷ|²) of the outputs before the softmax, in dB. Unlike the others, it is low for
  sensitive layers; `Sensitivity.weight_costs` turns it into noise over signal.
- `hessian`: Tr(H)/n · ‖Q(w) − w‖², the mean of the Hessian's n diagonal elements times the squared quantization error
  (HAWQ-V2, Dong et al. 2019, arXiv:1911.03852, eq. 2.11). For activations H is that of one image's loss for the layer's
  input, and both factors are means over images. `haq.search.sensitivity.curvature` says how traces are estimated.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import Samples
from haq.errors import ConfigError, ModelError, did_you_mean
from haq.layers import evaluating, quantizable_layers, run_sample, watched
from haq.layers.copying import sharing
from haq.layers.kinds import bias_of
from haq.quant.calibration import Calibration
from haq.quant.compensation import Rounded
from haq.quant.evaluation import labelled
from haq.search.sensitivity.batch_threads import Percent, Progress, spread
from haq.search.sensitivity.curvature import curvature
from haq.search.sensitivity.fisher import Change, squared_effects
from haq.search.sensitivity.recompute import Network, network_of
from haq.search.sensitivity.result import MEASURES, Sensitivity

__all__ = ["measure_sensitivity"]

Array = NDArray[np.float64]
Quantizers = Mapping[Change, nn.Module]

_BATCH = 64
_BATCH_BYTES = 2**28  # of all layers' inputs that a batch keeps
_TOTAL_BYTES = 2**30  # of those of all batches that run at once
_SAMPLE = 2  # images that decide how the network is run; a squeeze may remove the batch dimension of one
_GRAPH = 4  # a backward pass holds so many times the memory of the layers' inputs
_FISHER_PASSES = 5.0  # a forward and a backward pass, and the gradient of each sample's weights
_PROBE_PASSES = 2.5  # a probe of the Hessian takes as long as so many forward passes


def measure_sensitivity(
    model: nn.Module,
    calibration: Calibration,
    images: Samples,
    layers: Sequence[str],
    widths: Sequence[int],
    measures: Sequence[str] = MEASURES,
    progress: Progress = lambda done, total: None,
    *,
    inputs: Sequence[int] | None = None,
    seed: int = 0,
    probes: int = 8,
    workers: int | None = None,
) -> dict[str, Sensitivity]:
    """Measures every layer at every width.

    The float network's values are kept for one batch of images at a time, and only what follows a changed layer is run
    again. If `torch.fx` cannot trace the network, all of it is run each time, with the same result and a warning.

    Args:
        model: The float network.
        calibration: Quantizers of these layers and widths; see `haq.quant.calibration.calibrate`.
        images: Labelled images.
        layers: Names.
        widths: Bit-widths.
        measures: Some of `MEASURES`; `kl`, `loss` and `sqnr` come from the same outputs and take as long as one.
        progress: Called with the percentage that is done, and 100, perhaps from another thread.
        inputs: Widths at which activations are measured, by default all; the values of other widths are 0.
        seed: Of the Hessian's probes.
        probes: Random vectors for each batch of up to 64 images.
        workers: Batches at a time, each on one thread; by default the number of PyTorch's threads. The result does not
            depend on it.

    Returns:
        Measure → values.

    Raises:
        ConfigError: A measure is unknown, a layer or width is not calibrated, or there are no images.
        ModelError: The float network's outputs are not finite numbers.
    """
    wanted = (widths, widths if inputs is None else inputs)
    quantizers = _quantizers(calibration, layers, wanted)
    rounded = {change: calibration[change[0]].weights[change[2]] for change in quantizers if change[1] == 0}
    task = _Task(model, quantizers, rounded, images, tuple(layers), tuple(sorted(set(widths))))
    for name in measures:
        if name not in MEASURES:
            raise ConfigError(f"unknown measure {name!r}{did_you_mean(name, MEASURES)}; use {', '.join(MEASURES)}")
    if not len(images) or probes < 1:
        raise ConfigError(f"images={len(images)}, probes={probes}: there must be at least 1 of each")
    threads = torch.get_num_threads() if workers is None else workers
    found: dict[str, Array] = {}
    with evaluating(model):
        sample = images.batch(range(min(_SAMPLE, len(images))))[0]
        kept = _kept_bytes(model, layers, sample)
        network = network_of(model, layers, sample) if set(measures) - {"fisher", "hessian"} else None
        outputs = 1 + sum(network.share(name) for name, *_ in task.changes) if network is not None else 0
        curved = _PROBE_PASSES * (1 + probes) if "hessian" in measures else 0
        estimated = _FISHER_PASSES if "fisher" in measures else 0
        percent = Percent(progress, (outputs + curved + estimated) * len(images))
        if estimated:
            found["fisher"] = _estimated(task, seed, kept * _GRAPH, threads, percent)
        if network is not None:
            found |= _compare(task, network, kept, threads, percent)
        if curved:
            found["hessian"] = _curved(task, probes, seed, kept * _GRAPH, threads, percent)
    has_inputs = any(which == 1 for _, which, _ in task.changes)
    return {
        name: Sensitivity(name, task.layers, task.widths, found[name][:, 0], found[name][:, 1] if has_inputs else None)
        for name in measures
    }


@dataclass(frozen=True)
class _Task:
    model: nn.Module
    quantizers: Quantizers
    rounded: Mapping[Change, Rounded]
    images: Samples
    layers: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def changes(self) -> list[Change]:
        """All `(layer, which, width)` that change something."""
        return [change for change, quantizer in self.quantizers.items() if not isinstance(quantizer, nn.Identity)]

    def index(self, change: Change) -> tuple[int, int, int]:
        """The place of the change in an array `(layers, 2, widths)`."""
        layer, which, width = change
        return self.layers.index(layer), which, self.widths.index(width)

    def zeros(self, *last: int) -> Array:
        """Returns `(layers, 2, widths, *last)`."""
        return np.zeros((len(self.layers), 2, len(self.widths), *last))

    def quantized_weights(self) -> Iterator[tuple[Change, Any, Tensor, Tensor | None]]:
        """Yields the change, the layer, and its quantized weight and bias."""
        modules = dict(quantizable_layers(self.model))
        for change in self.changes:
            if change[1] == 0:
                layer, rounded = modules[change[0]], self.rounded[change]
                weight = self.quantizers[change](rounded.weight(layer.weight.detach())).detach()
                yield change, layer, weight, rounded.bias(layer)

    def batches(self, kept_bytes: float) -> list[range]:
        """Cuts the images into batches, none of which keeps more than `_BATCH_BYTES`."""
        size = int(min(self.images.fitting(_BATCH), max(1.0, _BATCH_BYTES / kept_bytes)))
        count = len(self.images)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _compare(task: _Task, network: Network, kept: float, threads: int, percent: Percent) -> dict[str, Array]:
    """Returns `kl`, `loss` and `sqnr`, each `(layers, 2, widths)`."""
    weights = {change: network.weights(change[0], weight, bias) for change, _, weight, bias in task.quantized_weights()}
    changes = {layer: [change for change in task.changes if change[0] == layer] for layer in task.layers}
    batches = task.batches(kept)
    sums = [task.zeros(3) for _ in batches]
    signals = [0.0] * len(batches)

    def measure(number: int) -> None:
        with torch.inference_mode():
            x, y = task.images.batch(batches[number])
            exact, state = network.start(x)
            if not bool(torch.isfinite(exact).all()):
                raise ModelError("the float network gives NaN or infinite outputs; check its weights and the data")
            signals[number] = float(labelled(exact, y)[0].double().square().sum())
            percent.advance(len(x))
            for layer in network.order:
                for change in changes[layer]:
                    if change[1] == 0:
                        output = network.changed(state, layer, weights[change])
                    else:
                        output = network.changed(state, layer, quantizer=task.quantizers[change])
                    sums[number][task.index(change)] = _differences(exact, output, y)
                    percent.advance(len(x) * network.share(layer))
                network.leave(state, layer)

    spread(measure, len(batches), _allowed(threads, kept, batches) if network.parallel else 1, percent)
    kl, loss, noise = np.moveaxis(np.sum(sums, axis=0), -1, 0)
    ratio = np.divide(sum(signals), noise, out=np.full_like(noise, math.inf), where=noise > 0)
    with np.errstate(divide="ignore"):
        sqnr = 10 * np.log10(ratio)
    answers = task.images.answers
    # Rounding may turn a divergence of 0 into −1e-17
    return {"kl": np.maximum(kl, 0) / answers, "loss": loss / answers, "sqnr": sqnr}


def _estimated(task: _Task, seed: int, kept: float, threads: int, percent: Percent) -> Array:
    """Returns `fisher`, `(layers, 2, widths)`."""
    added = {
        change: (weight - layer.weight.detach(), _difference(bias, bias_of(layer)))
        for change, layer, weight, bias in task.quantized_weights()
    }
    inputs = {change: task.quantizers[change] for change in task.changes if change[1] == 1}
    batches = task.batches(kept)
    sums = [task.zeros() for _ in batches]

    def measure(number: int) -> None:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + number)
        x, y = task.images.batch(batches[number])
        own = sharing(task.model)  # watching replaces methods of layers
        for change, effect in squared_effects(own, added, inputs, x, rng, y).items():
            sums[number][task.index(change)] = effect
        percent.advance(_FISHER_PASSES * len(x))

    spread(measure, len(batches), _allowed(threads, kept, batches), percent)
    effects: Array = np.sum(sums, axis=0) / task.images.answers
    return effects


def _difference(changed: Tensor | None, own: Tensor | None) -> Tensor | None:
    if changed is None or own is None:
        return changed
    return changed - own.detach()


def _differences(exact: Tensor, output: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Returns divergence, rise of the loss, and squared error, each summed over the images, in double precision."""
    (exact, labels), (output, _) = labelled(exact.double(), y), labelled(output.double(), y)
    log_p, log_q = exact.log_softmax(1), output.log_softmax(1)
    divergence = (log_p.exp() * (log_p - log_q)).sum()
    rise = F.nll_loss(log_q, labels, reduction="sum") - F.nll_loss(log_p, labels, reduction="sum")
    return float(divergence), float(rise), float((exact - output).square().sum())


def _curved(task: _Task, probes: int, seed: int, kept: float, threads: int, percent: Percent) -> Array:
    """Returns `hessian`, `(layers, 2, widths)`."""
    batches = task.batches(kept)
    traces = [np.zeros((len(task.layers), 2)) for _ in batches]
    errors = [task.zeros() for _ in batches]
    sizes = np.ones((len(task.layers), 2))  # values of a weight, and of a layer's input for one image
    modules = dict(quantizable_layers(task.model))
    sizes[:, 0] = [modules[name].weight.numel() for name in task.layers]

    def measure(number: int) -> None:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + number)
        x, y = task.images.batch(batches[number])
        found = curvature(task.model, task.layers, x, probes, rng, y)
        traces[number][:] = np.stack([found.weights, found.inputs], 1)
        with torch.no_grad():
            for change in task.changes:
                if change[1] == 1:
                    quantizer, read = task.quantizers[change], found.read[change[0]]
                    errors[number][task.index(change)] = sum(float((quantizer(a) - a).square().sum()) for a in read)
        if number == 0:
            sizes[:, 1] = [sum(a.numel() for a in found.read[name]) / len(x) for name in task.layers]
        percent.advance(_PROBE_PASSES * (1 + probes) * len(x))

    spread(measure, len(batches), _allowed(threads, kept, batches), percent)
    count = len(task.images)
    mean_diagonal: Array = np.sum(traces, axis=0) / count / sizes
    error: Array = np.sum(errors, axis=0) / count
    for change, layer, quantized, _ in task.quantized_weights():
        error[task.index(change)] = float((quantized - layer.weight.detach()).double().square().sum())
    return mean_diagonal[:, :, None] * error


def _quantizers(calibration: Calibration, layers: Sequence[str], widths: tuple[Sequence[int], ...]) -> Quantizers:
    """Returns copies of the quantizers in evaluation mode, for these widths of weights and of inputs.

    Raises:
        ConfigError: One is missing.
    """
    chosen: dict[tuple[str, int, int], nn.Module] = {}
    for layer in layers:
        if layer not in calibration:
            raise ConfigError(f"layer {layer!r} is not calibrated{did_you_mean(layer, calibration)}")
        weights = {width: rounded.quantizer for width, rounded in calibration[layer].weights.items()}
        for which, known in enumerate((weights, calibration[layer].inputs)):
            for width in sorted(set(widths[which])):
                if width not in known:
                    raise ConfigError(f"layer {layer!r} is not calibrated for {width} bits, only for {sorted(known)}")
                chosen[layer, which, width] = copy.deepcopy(known[width]).eval().requires_grad_(False)
    return chosen


def _kept_bytes(model: nn.Module, layers: Sequence[str], sample: Tensor) -> float:
    """Returns the bytes of one image and of all layers' inputs for it."""
    total = [sample.nbytes]

    def count(module: nn.Module, x: Tensor) -> None:
        total.append(x.nbytes)

    with watched((layer for name, layer in quantizable_layers(model) if name in layers), before=count):
        run_sample(model, sample)
    return sum(total) / len(sample)


def _allowed(threads: int, kept: float, batches: Sequence[range]) -> int:
    """Returns how many batches may run at once."""
    return max(1, min(threads, len(batches), int(_TOTAL_BYTES / (kept * len(batches[0])))))
