"""Measuring the cost table of a network's layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from haq.errors import HardwareError
from haq.hwmodels.accelerators.footprint import footprint
from haq.hwmodels.kernels.deployment import BitSerialModule, deploy, random_module
from haq.hwmodels.kernels.runtime import Runtime
from haq.hwmodels.kernels.stopwatch import get_stopwatch
from haq.hwmodels.liveness import plan_or_none
from haq.hwmodels.measuring.device import EnergyCounter, describe_device, one_core
from haq.hwmodels.measuring.gpu import GpuEnergyCounter
from haq.hwmodels.measuring.journal import Journal
from haq.hwmodels.measuring.monotone import monotone
from haq.hwmodels.measuring.sampling import joules_per_call, sample, summarize
from haq.hwmodels.tables.table import CostTable
from haq.layers import LayerSpec, fresh
from haq.layers.kinds.lowering import lowered_spec
from haq.policy import BitPolicy, LayerBits
from haq.quant.preparation import prepare

__all__ = ["Plan", "measure"]

Progress = Callable[[int, int], None]
Floats = npt.NDArray[np.float64]

_PASSES = 3  # over all pairs of widths, so that a slow minute does not affect only some of them
_GROUP_BYTES = 2**30
_ENERGY_SOURCES = {"cpu": "RAPL, processor package", "cuda": "NVML, whole board"}
_NO_ENERGY = {"cpu": "not exposed by this machine", "cuda": "not read; needs nvidia-ml-py and a GPU with a counter"}
_ENERGY_SECONDS = {"cpu": 0.05, "cuda": 1.0}  # RAPL is updated about every millisecond, NVML every 100


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        layers: Layers of the network.
        w_bits: Widths of weights, ascending.
        a_bits: Widths of activations, ascending.
        batch: Batch size.
        repeats: Measurements of each layer at each pair of widths.
        seed: Seed of the measuring order and of the random weights; times do not depend on the weights.
        device: `cpu` or `cuda`.
        backend: Kernels to run there; the fastest if not given. See `Runtime`.
    """

    layers: Sequence[LayerSpec]
    w_bits: tuple[int, ...]
    a_bits: tuple[int, ...]
    batch: int = 1
    repeats: int = 60
    seed: int = 0
    device: str = "cpu"
    backend: str | None = None

    @cached_property
    def shapes(self) -> list[LayerSpec]:
        """The distinct layers, regardless of their names and numbers of calls."""
        return list(dict.fromkeys(map(_shape, self.layers)))

    @property
    def cells(self) -> list[LayerBits]:
        """Pairs of widths, weights first."""
        return [LayerBits(w, a) for w, a in product(self.w_bits, self.a_bits)]

    @property
    def groups(self) -> list[list[LayerBits]]:
        """The cells, in groups whose kernels fit into memory together."""
        weights = sum(layer.params for layer in self.layers)  # at most a byte each, and as much again while packing
        inputs = self.batch * sum(layer.in_channels * math.prod(layer.in_size) for layer in self.layers)
        size = max(_GROUP_BYTES // (2 * weights + 4 * inputs), 1)  # codes, their planes, and addresses of windows
        return [self.cells[start : start + size] for start in range(0, len(self.cells), size)]


def measure(plan: Plan, model: nn.Module, sample_input: Tensor, journal: Path, progress: Progress) -> CostTable:
    """Measures every layer at every pair of widths on this machine, on one core; layers of one shape are pooled.

    Layers are timed inside the running network, where caches are as warm as in use. Every forward pass gives each layer
    another pair of widths, until each layer was measured at every pair equally often. The time of a layer includes
    quantizing its input, packing bit planes, multiplying and rescaling. Everything between the layers (activation
    functions, additions, pooling, PyTorch itself) becomes the table's `rest`. On a GPU, times are taken between events
    in its queue; if kernels are short, they are the time that launching takes.

    Args:
        plan: What to measure.
        model: The float network.
        sample_input: One input, `(1, …)`.
        journal: File of the finished pieces; an interrupted measurement resumes from it.
        progress: Called with the number of finished pieces and the number of all pieces.

    Raises:
        HardwareError: The device is not available, its kernels cannot run a layer, or the journal belongs to another
            measurement.
    """
    runtime = Runtime.of(plan.device, plan.backend)
    device = describe_device(plan.device)
    header = {**asdict(plan), "device": device["device"], "torch": device["torch"], "haq": device["haq"]}
    done = Journal(journal, header)
    counter = GpuEnergyCounter() if plan.device == "cuda" else EnergyCounter()
    groups = plan.groups
    pieces = [f"{turn}:{index}" for turn in range(_PASSES) for index in range(len(groups))]
    pieces += [f"energy:{index}" for index in range(len(plan.shapes)) if counter.available]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with one_core(), torch.inference_mode():
            network = _Network(plan, model, sample_input)
            for number, key in enumerate(pieces):
                progress(number, len(pieces))
                kind, index = key.split(":")
                if key in done:
                    continue
                if kind == "energy":
                    done[key] = _energy(plan, plan.shapes[int(index)], counter)
                else:
                    done[key] = network.times(groups[int(index)], plan.seed + int(kind)).tolist()
            progress(len(pieces), len(pieces))
    finally:
        torch.set_num_threads(threads)
    table = _table(plan, done, device, runtime, counter.available)
    return replace(table, memory=plan_or_none(model, sample_input))


class _Network:
    """The network with a slot for each layer, which takes kernels of any widths."""

    def __init__(self, plan: Plan, model: nn.Module, sample_input: Tensor) -> None:
        self._plan = plan
        policy = BitPolicy.uniform([layer.name for layer in plan.layers], plan.w_bits[0])
        self._network = deploy(prepare(model, policy), sample_input, plan.backend, plan.device)
        self._slots = {
            name: module for name, module in self._network.named_modules() if isinstance(module, BitSerialModule)
        }
        x = sample_input.expand(plan.batch, *sample_input.shape[1:])
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()
        self._x = x.to(plan.device)

    def times(self, group: Sequence[LayerBits], seed: int) -> Floats:
        """Returns the milliseconds of every layer and, in the last row, of the rest: `(pairs, layers + 1, repeats)`."""
        rng = np.random.default_rng(seed)
        kernels = {
            layer.name: [_random_module(self._plan, layer, bits).kernel for bits in group]
            for layer in self._plan.layers
        }
        offsets = {name: int(rng.integers(len(group))) for name in kernels}
        watch = get_stopwatch(self._plan.device)

        def call(start: int) -> Callable[[], Floats]:
            def run() -> Floats:
                for name, slot in self._slots.items():
                    slot.kernel, slot.elapsed_ns = kernels[name][(start + offsets[name]) % len(group)], 0
                watch.reset()
                x = fresh(self._x)
                with watch:
                    self._network(x)
                total = watch.elapsed_ns
                layers = [self._slots[name].elapsed_ns for name in kernels]
                return np.array([*layers, total - sum(layers)]) / 1e6

            return run

        taken = sample([call(start) for start in range(len(group))], -(-self._plan.repeats // _PASSES), seed)
        # Reordered from forward passes to pairs: in pass p, layer l had pair p + offset of l
        order = [np.roll(taken[:, :, row], offsets[name], axis=0) for row, name in enumerate(kernels)]
        return np.stack([*order, taken[:, :, -1]], axis=1)


def _random_module(plan: Plan, layer: LayerSpec, bits: LayerBits) -> BitSerialModule:
    return random_module(replace(_shape(layer), name=layer.name), bits, plan.seed, plan.backend, plan.device)


def _energy(plan: Plan, shape: LayerSpec, counter: EnergyCounter | GpuEnergyCounter) -> list[float]:
    """Measures the energy of one shape at every pair of widths, in millijoules."""
    size = (plan.batch * shape.in_size[0],) if shape.kind == "linear" else (plan.batch, *shape.in_size)
    x = torch.rand(*size, shape.in_channels, device=plan.device)
    x = x if shape.kind == "linear" else x.permute(0, 3, 1, 2)
    calls = [partial(_random_module(plan, shape, bits), x) for bits in plan.cells]
    return [float(1e3 * joules) for joules in joules_per_call(calls, counter, _ENERGY_SECONDS[plan.device])]


def _shape(layer: LayerSpec) -> LayerSpec:
    """Returns a call of a layer, as kernels run it, without its name."""
    spec = lowered_spec(layer)
    if spec is None:
        raise HardwareError(
            f"layer {layer.name!r} ({layer.kind}) has no bit-serial kernel, so it cannot be measured; they run linear "
            "layers and convolutions in one and two dimensions; leave it out with --float, or use a cost model"
        )
    return replace(spec, name="layer", biases=0)


def _table(plan: Plan, done: Journal, device: dict[str, str], runtime: Runtime, with_energy: bool) -> CostTable:
    shape = (len(plan.w_bits), len(plan.a_bits))
    passes = [np.concatenate([done[f"{turn}:{index}"] for index in range(len(plan.groups))]) for turn in range(_PASSES)]
    taken = np.concatenate(passes, axis=2)  # (pairs, layers + 1, repeats)
    calls = np.array([layer.calls for layer in plan.layers])
    measured: dict[LayerSpec, dict[str, Floats]] = {}
    for index, spec in enumerate(plan.shapes):
        alike = [row for row, layer in enumerate(plan.layers) if _shape(layer) == spec]
        statistics = summarize((taken[:, alike] / calls[alike, None]).reshape(len(taken), -1))
        measured[spec] = {
            "latency_ms": _fitted(statistics.median.reshape(shape)),
            "raw_latency_ms": statistics.median.reshape(shape),
            "spread": statistics.spread.reshape(shape),
            "outliers": statistics.outliers.reshape(shape),
        }
        if with_energy:
            measured[spec]["energy_mj"] = _fitted(np.maximum(done[f"energy:{index}"], 1e-9).reshape(shape))

    def stack(name: str) -> Floats:
        factors = calls if name in ("latency_ms", "raw_latency_ms", "energy_mj") else np.ones_like(calls)
        cubes = [factor * measured[_shape(layer)][name] for layer, factor in zip(plan.layers, factors, strict=True)]
        return np.stack(cubes)

    metrics = {"latency_ms": stack("latency_ms"), **footprint(plan.layers, plan.w_bits, plan.a_bits)}
    if with_energy:
        metrics["energy_mj"] = stack("energy_mj")
    energy_source = (_ENERGY_SOURCES if with_energy else _NO_ENERGY)[plan.device]
    return CostTable(
        hardware=device["device"],
        batch=plan.batch,
        layers=tuple(layer.name for layer in plan.layers),
        w_bits=plan.w_bits,
        a_bits=plan.a_bits,
        metrics=metrics,
        origin="measured",
        version=f"haq {device['haq']}, {runtime.backend} kernels",
        rest={"latency_ms": float(summarize(taken[:, -1].reshape(1, -1)).median[0])},
        details={name: stack(name) for name in ("raw_latency_ms", "spread", "outliers")},
        provenance={**device, "threads": "1", "repeats": str(taken.shape[2]), "energy": energy_source},
    )


def _fitted(costs: Floats) -> Floats:
    """Returns costs that never fall as a width grows; fitted to logarithms, because the noise is relative."""
    return np.exp(monotone(np.log(costs)))
