"""Runs the network that a search found on this machine: predicted and measured latency, and accuracy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from haq.errors import ConfigError
from haq.hwmodels.kernels.deployment import deploy
from haq.hwmodels.measuring import Plan, measure
from haq.hwmodels.measuring.bench import Bench, bench, int8_network
from haq.hwmodels.measuring.device import describe_device
from haq.hwmodels.pricing import Pricing
from haq.hwmodels.tables.formats import load_table
from haq.hwmodels.tables.table import CostTable
from haq.io.files import write_text
from haq.layers import trace
from haq.policy import BitPolicy
from haq.progress import Observer, Silent
from haq.quant.evaluation import evaluate
from haq.quant.run_network import open_quantized
from haq.runs import RunFolder
from haq.runs.relocation import Named

__all__ = ["BenchedRun", "bench_run"]

_CALIBRATION_IMAGES = 256
_FLOAT32, _FAKE, _INT8, _OURS = "float32 (PyTorch)", "fake-quantized", "int8 (PyTorch)", "this network"


@dataclass(frozen=True, eq=False)
class BenchedRun:
    """A searched network with its measurements.

    Attributes:
        policy: Its widths.
        costs: The table that predicted its latency.
        bench: Latencies.
        top1: Network → top-1 on the test images: PyTorch's networks, the fake-quantized one, and this one on the
            kernels.
        machine: The machine that was measured.
    """

    policy: BitPolicy
    costs: CostTable
    bench: Bench
    top1: Mapping[str, float]
    machine: Mapping[str, str]

    @property
    def latencies_ms(self) -> dict[str, float | None]:
        """Network → latency, for the networks in `top1`; `None` for fake quantization, which only simulates."""
        latencies = {_FLOAT32: self.bench.float32, _INT8: self.bench.int8, _OURS: self.bench.total, _FAKE: None}
        return {name: latency for name, latency in latencies.items() if name in self.top1}


def bench_run(
    folder: RunFolder,
    table: Path | None,
    repeats: int,
    observer: Observer | None = None,
    named: Named | None = None,
) -> BenchedRun:
    """Runs the network that a search found on this machine's kernels, and writes the folder's `bench.json`.

    Args:
        folder: A search that has ended.
        table: The table that predicts the latency. By default it is the run's own table if that was measured on this
            machine; otherwise the widths that the network uses are measured first.
        repeats: Measurements of each network.
        observer: Receives progress.
        named: Replacements for the model and data that the run names.

    Raises:
        ConfigError: The folder has no network that the kernels can run, or something that the run names has changed.
        HardwareError: The table is not for this network.
    """
    policy, observer = folder.read_best().policy, observer or Silent()
    if any(bits.a_bits is None or bits.w_bits is None or max(bits.a_bits, bits.w_bits) > 8 for bits in policy.values()):
        raise ConfigError(
            f"{folder.path}: the kernels run weights and activations of 1 to 8 bits; this network has others; search "
            "again with --bits 1-8 and without --weights-only"
        )
    opened = open_quantized(folder, policy, observer, named)
    model, quantized, images = opened.model, opened.network, opened.data
    sample = images.test.batch([0])[0]
    deployed = deploy(quantized, sample)  # fails before anything is measured
    costs = _costs(folder, table, policy, model, sample, observer)
    observer.say("running the network")
    x = images.test.batch([index % len(images.test) for index in range(costs.batch)])[0]
    shown = images.train.subset(range(min(_CALIBRATION_IMAGES, len(images.train))))
    int8 = int8_network(model, [batch for batch, _ in shown.batches(64)])
    result = bench(deployed, model, policy, costs, x, repeats=repeats, int8=int8)
    networks = {_FLOAT32: model, _FAKE: quantized, _OURS: deployed}
    if int8 is not None:
        networks[_INT8] = int8
    top1 = {}
    for number, (name, network) in enumerate(networks.items()):
        observer.progress("test", number, len(networks), name)
        top1[name] = evaluate(network, images.test, "ptq").top1
    observer.progress("test", len(networks), len(networks))
    found = BenchedRun(policy, costs, result, top1, describe_device())
    _write(folder, found)
    return found


def _costs(
    folder: RunFolder,
    table: Path | None,
    policy: BitPolicy,
    model: nn.Module,
    sample: Tensor,
    observer: Observer,
) -> CostTable:
    """Returns the table that predicts: the given one, the run's own if measured here, or one that is measured now."""
    if table is not None:
        found = load_table(table)
        return Pricing(str(table), found, found.batch).price(trace(model, sample), (), found.batch)
    if folder.costs.is_file() and (own := CostTable.load(folder.costs)).origin == "measured":
        if own.hardware == describe_device()["device"]:
            return own
        observer.say(f"note: the run's own table was measured elsewhere, on {own.hardware}")
    observer.say("measuring the widths of this network first")
    w_bits, a_bits = (tuple(sorted({getattr(bits, name) for bits in policy.values()})) for name in ("w_bits", "a_bits"))
    plan = Plan(trace(model, sample), w_bits, a_bits)
    journal = folder.path / "bench.partial"
    costs = measure(plan, model, sample, journal, lambda done, total: observer.progress("measure", done, total))
    journal.unlink(missing_ok=True)
    return costs


def _write(folder: RunFolder, found: BenchedRun) -> None:
    content = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in asdict(found.bench).items()}
    content |= {"predicted_total": found.bench.predicted_total, "top1": found.top1, "machine": found.machine}
    write_text(folder.bench, json.dumps(content, indent=1) + "\n")
