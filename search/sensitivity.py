"""How much one layer alone loses at each width: which layers need their bits.

Layers are judged one at a time, weights and activations apart, all others in floating point. Three measures compare the
network's outputs with the float network's; the fourth predicts the loss from its curvature, without quantizing anything
but the tensor itself:

- `kl`: mean Kullback-Leibler divergence of the float network's classes from the quantized one's, in nats (ZeroQ, Cai et
  al. 2020, arXiv:2001.00281, eq. 3). It needs no labels.
- `loss`: rise of the mean cross-entropy, in nats; chance may make it slightly negative.
- `sqnr`: 10·log10(Σ|y|² / Σ|y − ŷ|²) of the logits, in dB. Low means sensitive, contrary to the others.
- `hessian`: mean of the Hessian's diagonal times the squared quantization error, Tr(H)/n · ‖Q(w) − w‖² (HAWQ-V2, Dong et
  al. 2019, arXiv:1911.03852, eq. 2.11). For activations H is taken for the layer's input, one sample at a time, and the
  product is averaged over samples (section 2.3). Traces are Hutchinson estimates with Rademacher probes.

An output after a change is computed from the float network's values: only what follows the changed layer runs again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import operator
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from haq.data import Images
from haq.errors import ConfigError, ModelError, did_you_mean
from haq.files import write_text
from haq.layers import evaluating, quantizable_layers
from haq.quant.calibration import Calibration
from haq.quant.graph import trace_graph
from haq.quant.modules import quantized_like, replace_module

__all__ = [
    "MEASURES",
    "Sensitivity",
    "cached",
    "fingerprint",
    "hessian_traces",
    "load_sensitivity",
    "measure_sensitivity",
    "save_sensitivity",
]

logger = logging.getLogger(__name__)

MEASURES = ("kl", "loss", "sqnr", "hessian")
"""Names of the measures; see the module's text."""

Array = NDArray[np.float64]
Layer = nn.Conv2d | nn.Linear

_VERSION = 1  # of the file and of what the numbers mean
_BATCH = 64
_BATCH_BYTES = 128 * 2**20  # of the values that one batch keeps
_HESSIAN_FACTOR = 8  # graphs of two backward passes hold about so many times as much
_ALL_BYTES = 2**30  # of the values that all threads keep


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """One measure for every layer and width.

    Attributes:
        measure: One of `MEASURES`.
        layers: Names, in the order given.
        widths: Ascending.
        weights: `(layers, widths)`, the layer's weights quantized alone.
        activations: The same for its input; `None` where the scheme leaves activations in floating point.
    """

    measure: str
    layers: tuple[str, ...]
    widths: tuple[int, ...]
    weights: Array
    activations: Array | None

    @property
    def weight_costs(self) -> Array:
        """`weights` as costs that add up over layers: high means sensitive. SQNR becomes noise over signal."""
        return self._costs(self.weights)

    @property
    def activation_costs(self) -> Array | None:
        """The same for `activations`."""
        return None if self.activations is None else self._costs(self.activations)

    def _costs(self, values: Array) -> Array:
        return 10.0 ** (-values / 10) if self.measure == "sqnr" else values

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types; an infinite SQNR, where nothing changes, is null."""

        def plain(values: Array) -> list[list[float | None]]:
            return [[float(value) if math.isfinite(value) else None for value in row] for row in values]

        activations = None if self.activations is None else plain(self.activations)
        return {
            "measure": self.measure,
            "layers": list(self.layers),
            "widths": list(self.widths),
            "weights": plain(self.weights),
            "activations": activations,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sensitivity:
        """Restores what `to_dict` gave.

        Raises:
            ConfigError: It is something else.
        """
        try:
            layers, widths = tuple(map(str, data["layers"])), tuple(map(int, data["widths"]))
            shape = (len(layers), len(widths))

            def array(rows: list[list[float | None]]) -> Array:
                full = [[math.inf if value is None else value for value in row] for row in rows]
                return np.array(full, np.float64).reshape(shape)

            activations = None if data["activations"] is None else array(data["activations"])
            return cls(str(data["measure"]), layers, widths, array(data["weights"]), activations)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a sensitivity: {error!r}; `haq sensitivity` writes it anew") from None


# Files


def save_sensitivity(path: Path, measured: Mapping[str, Sensitivity], key: Mapping[str, Any]) -> None:
    """Writes measures with what they were measured for.

    Args:
        path: File to write, JSON.
        measured: Measure → values.
        key: Plain JSON types; see `fingerprint`.
    """
    content = {"version": _VERSION, "key": dict(key), "measures": {k: v.to_dict() for k, v in measured.items()}}
    write_text(path, json.dumps(content) + "\n")


def load_sensitivity(path: Path, key: Mapping[str, Any] | None = None) -> dict[str, Sensitivity]:
    """Reads what `save_sensitivity` wrote.

    Raises:
        ConfigError: The file is missing or damaged, or, when a key is given, was written for another.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, found, measures = content["version"], content["key"], dict(content["measures"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot read {str(path)!r} as a sensitivity: {error}") from None
    if version != _VERSION or (key is not None and found != json.loads(json.dumps(dict(key)))):
        raise ConfigError(f"{str(path)!r} is for another network, data or options; measure again")
    return {name: Sensitivity.from_dict(values) for name, values in measures.items()}


def cached(
    path: Path, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Sensitivity]]
) -> dict[str, Sensitivity]:
    """Returns what `path` holds if it was written for this key; otherwise computes and writes it.

    Args:
        path: Such as `RUN/sensitivity.json`.
        key: Everything that the result depends on; see `fingerprint`.
        compute: Called without arguments.
    """
    try:
        return load_sensitivity(path, key)
    except ConfigError as error:
        logger.debug("measuring: %s", error)
    measured = dict(compute())
    save_sensitivity(path, measured, key)
    return measured


def fingerprint(
    model: nn.Module,
    calibration: Calibration,
    images: Images,
    layers: Sequence[str],
    widths: Sequence[int],
    measures: Sequence[str] = MEASURES,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the key of a measurement for `cached`; the arguments are those of `measure_sensitivity`.

    Weights, scales and images go in as digests, so that a key says *which* network and data, not only their names. Of
    the code only the modules' printed form counts: a forward pass that is written anew is not noticed.
    """
    quantizers = hashlib.sha256()
    for name in layers:
        for group in (calibration[name].weights, calibration[name].inputs):
            for width in widths:
                quantizers.update(f"{name} {width} ".encode())
                if width in group:
                    _digest(quantizers, group[width])
    network, data = hashlib.sha256(), hashlib.sha256(f"{images.mean} {images.std}".encode())
    _digest(network, model)
    for array in (images.x, images.y):
        data.update(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return {
        "model": network.hexdigest(),
        "calibration": quantizers.hexdigest(),
        "images": data.hexdigest(),
        "layers": list(layers),
        "widths": list(widths),
        "measures": list(measures),
        "seed": seed,
    }


def _digest(into: Any, module: nn.Module) -> None:
    into.update(f"{type(module).__qualname__} {module}".encode())
    for name, value in module.state_dict().items():
        into.update(name.encode())
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            into.update(f"{plain.dtype} {tuple(plain.shape)}".encode() + plain.view(-1).view(torch.uint8).numpy().tobytes())
        else:
            into.update(repr(value).encode())


# Measuring


def measure_sensitivity(
    model: nn.Module,
    calibration: Calibration,
    images: Images,
    layers: Sequence[str],
    widths: Sequence[int],
    measures: Sequence[str] = MEASURES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    seed: int = 0,
    probes: int = 8,
    workers: int | None = None,
) -> dict[str, Sensitivity]:
    """Measures what quantizing one layer alone does, for every layer, width, and both of its operands.

    Memory: the values that a batch of at most 64 images keeps, about 1 GB for all threads together, and the weights of
    all widths. The result does not depend on the number of threads.

    Args:
        model: The float network. One that `torch.fx` cannot trace is run whole for every change; a warning says so.
        calibration: Quantizers of these layers and widths; see `haq.quant.calibration.calibrate`.
        images: Labelled images to measure on.
        layers: Names.
        widths: Bit-widths.
        measures: Of `MEASURES`; the first three come from the same outputs and cost as much as one.
        progress: Is told work done and in all.
        seed: Of the Hessian's probes.
        probes: Rademacher vectors a batch; every batch draws its own.
        workers: Batches at a time, each on one thread; by default as many as PyTorch's threads.

    Returns:
        Measure → values.

    Raises:
        ConfigError: A measure is unknown, or a layer or width is not calibrated.
        ModelError: The float network's outputs are not finite class scores.
    """
    _check(calibration, images, layers, widths, measures)
    workers = torch.get_num_threads() if workers is None else workers
    widths = tuple(sorted(set(widths)))
    work = _Work(model, calibration, images, tuple(layers), widths)
    found: dict[str, tuple[Array, Array]] = {}
    with evaluating(model), _Threads(workers) as threads:
        tasks: list[Callable[[], None]] = []
        outputs = _Outputs(work) if set(measures) - {"hessian"} else None
        curvature = _Curvature(work, seed, probes) if "hessian" in measures else None
        total = sum(part.total for part in (outputs, curvature) if part is not None)
        threads.watch(progress, total)
        for part in (outputs, curvature):
            if part is not None:
                threads.run(part.batches, part.measure, part.parallel, part.batch_bytes)
        del tasks
        for part in (outputs, curvature):
            if part is not None:
                found |= part.results()
    plain = all(isinstance(work.inputs[name, width], nn.Identity) for name in layers for width in widths)
    return {
        name: Sensitivity(name, work.layers, widths, found[name][0], None if plain else found[name][1])
        for name in measures
    }
