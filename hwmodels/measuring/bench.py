"""Running a quantized network on this machine's kernels, compared with its predicted latency and with PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from haq.hwmodels.kernels.bitserial import backends
from haq.hwmodels.kernels.deployment import BitSerialModule
from haq.hwmodels.measuring.device import one_core
from haq.hwmodels.measuring.sampling import sample, summarize
from haq.hwmodels.tables.table import CostTable
from haq.layers import copied, evaluating, fresh
from haq.policy import BitPolicy
from haq.quant.folding import fold_batch_norm

__all__ = ["Bench", "bench", "int8_network"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bench:
    """Median latencies in milliseconds.

    Attributes:
        layers: Names of the layers.
        predicted: Latency of each layer from the cost table, `(L,)`.
        measured: Latency of each layer inside the network, `(L,)`.
        predicted_rest: Latency of everything else, from the cost table.
        measured_rest: Latency of everything else, measured.
        total: Latency of the whole network, measured.
        spread: Interquartile range of the total, as a fraction of it.
        float32: Latency of the float network in PyTorch, batch norms folded.
        int8: Latency of PyTorch's own 8-bit network; `None` if PyTorch cannot make one.
        kernels: Name of the kernels that ran.
    """

    layers: tuple[str, ...]
    predicted: Floats
    measured: Floats
    predicted_rest: float
    measured_rest: float
    total: float
    spread: float
    float32: float
    int8: float | None
    kernels: str

    @property
    def predicted_total(self) -> float:
        """Latency of the whole network from the cost table."""
        return float(self.predicted.sum()) + self.predicted_rest

    @property
    def error(self) -> float:
        """Relative error of the predicted total; negative if the prediction is too fast."""
        return self.predicted_total / self.total - 1


def bench(
    deployed: nn.Module,
    model: nn.Module,
    policy: BitPolicy,
    table: CostTable,
    x: Tensor,
    calibration: Iterable[Tensor] = (),
    repeats: int = 100,
    int8: nn.Module | None = None,
) -> Bench:
    """Measures a network on one core, interleaved with PyTorch's float and 8-bit networks.

    Args:
        deployed: From `deploy`.
        model: The float network.
        policy: The widths of `deployed`.
        table: Cost table with the predictions, for this batch size.
        x: Input, `(N, …)`.
        calibration: Batches that set the ranges of PyTorch's 8-bit network; without them it is left out.
        repeats: Measurements of each network.
        int8: PyTorch's 8-bit network, if it exists already.

    Raises:
        HardwareError: The table does not price the policy.
    """
    kernels = {name: module for name, module in deployed.named_modules() if isinstance(module, BitSerialModule)}
    predicted = table.layer_costs(policy, "latency_ms")
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    folded: nn.Module = fold_batch_norm(model, x[:1]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    networks = [deployed, folded]
    batches = list(calibration)
    int8 = int8 or (int8_network(model, batches) if batches else None)
    networks += [int8] if int8 is not None else []

    def call(network: nn.Module) -> Callable[[], list[float]]:
        def run() -> list[float]:
            before = [module.elapsed_ns for module in kernels.values()]
            own = fresh(x)
            start = perf_counter_ns()
            network(own)
            taken = (perf_counter_ns() - start) / 1e6
            if network is deployed:
                after = [module.elapsed_ns for module in kernels.values()]
                return [taken, *(np.subtract(after, before) / 1e6)]
            return [taken, *np.zeros(len(kernels))]

        return run

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with one_core(), torch.inference_mode():
            taken = sample([call(network) for network in networks], repeats, seed=0)
    finally:
        torch.set_num_threads(threads)
    statistics = summarize(taken[:, :, 0])
    inside = taken[0, :, 1:]
    by_layer = dict(zip(kernels, summarize(inside.T).median, strict=True))
    measured = np.array([by_layer[name] for name in table.layers])
    rest = taken[0, :, 0] - inside.sum(axis=1)
    return Bench(
        layers=table.layers,
        predicted=predicted,
        measured=measured,
        predicted_rest=table.rest.get("latency_ms", 0.0),
        measured_rest=float(summarize(rest[None]).median[0]),
        total=float(statistics.median[0]),
        spread=float(statistics.spread[0]),
        float32=float(statistics.median[1]),
        int8=float(statistics.median[2]) if int8 is not None else None,
        kernels=backends()[0],
    )


def int8_network(model: nn.Module, calibration: Iterable[Tensor]) -> nn.Module | None:
    """Returns PyTorch's own 8-bit network for CPUs, or `None` if PyTorch cannot make it.

    Static post-training quantization in graph mode, weights per channel, layers fused with batch norms and ReLU.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns that these functions move to torchao
            from torch.ao.quantization import get_default_qconfig_mapping
            from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

            batches = list(calibration)
            engine = torch.backends.quantized.engine
            prepared: Any = prepare_fx(
                copied(model).eval(), get_default_qconfig_mapping(engine), (fresh(batches[0][:1]),)
            )
            with evaluating(prepared):
                for batch in batches:
                    prepared(fresh(batch))
                converted: nn.Module = convert_fx(prepared)
                converted(fresh(batches[0][:1]))
            return converted
    except Exception:  # PyTorch's tracer and kernels raise exceptions of many types
        return None
