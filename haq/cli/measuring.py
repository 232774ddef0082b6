"""Commands that run on this machine's own kernels: `haq measure` and `haq bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

from haq.cli.options import DEFAULTS, examples, network_options
from haq.cli.terminal import TerminalObserver, console
from haq.config import check_range, parse_bits
from haq.constraints import format_cost
from haq.errors import ConfigError, HardwareError
from haq.sources import short_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from haq.data import ImageData
    from haq.hwmodels import CostTable
    from haq.hwmodels.bench import Bench
    from haq.policy import BitPolicy
    from haq.runs import RunFolder

__all__ = ["bench", "measure"]

_REPEATS = 60
_CALIBRATION_IMAGES = 256


@click.command(
    epilog=examples(
        "haq measure",
        "haq measure --model resnet20 --data npz:cifar10 -o cpu.parquet",
        "haq search --model resnet20 --weights resnet20.pt --data npz:cifar10 --hardware cpu.parquet --batch 1 "
        "--constraint latency=70%",
    )
)
@network_options
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda", help="What to measure.")
@click.option("--bits", default="1-8", show_default=True, metavar="WIDTHS", help="Of weights and activations.")
@click.option("--batch", default=1, show_default=True, help="Samples at once.")
@click.option("--repeats", default=_REPEATS, show_default=True, help="Of each layer at each pair of widths.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="TABLE",
    help="Cost table to write, .parquet.  [default: MODEL-DEVICE.parquet]",
)
def measure(
    model: str, weights: str | None, data: str, device: str, bits: str, batch: int, repeats: int, output: Path | None
) -> None:
    """Measure every layer of a network at every pair of widths on this machine, and write a cost table.

    Layers run on bit-serial kernels, on one core or on the GPU, inside the network; packing and rescaling are part of
    the time. Keep the machine quiet meanwhile. After Ctrl-C the same command goes on with what was measured.
    """
    path = output or Path(f"{short_name(model)}-{device}.parquet")
    _check(path, device, batch, repeats)
    widths = parse_bits(bits)
    if widths[-1] > 8:
        raise ConfigError(f"--bits {bits}: bit-serial kernels take widths of 1 to 8 bits")
    with TerminalObserver() as observer:
        from haq.data import get_data
        from haq.hwmodels.measuring import Plan
        from haq.hwmodels.measuring import measure as measured
        from haq.layers import trace
        from haq.models import open_untrained

        images = get_data(data, DEFAULTS.val_images, 0, model)
        sample = images.train.batch([0])[0]
        network = open_untrained(model, weights, images)
        plan = Plan(trace(network, sample), widths, widths, batch, repeats, device=device)
        observer.say(f"{len(plan.layers)} layers of {len(plan.shapes)} shapes, {len(plan.cells)} pairs of widths")
        journal = path.with_name(path.name + ".partial")
        costs = measured(plan, network, sample, journal, lambda done, total: observer.progress("measure", done, total))
        costs.save(path)
        journal.unlink(missing_ok=True)
    _print_measured(costs)
    console.print(Text(f"\nwritten: {path}"), soft_wrap=True)


@click.command(
    epilog=examples(
        "haq bench runs/digits-resnet-edge-latency-10ms",
        "haq bench runs/resnet20-cpu-latency-70pct --table cpu.parquet",
    )
)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--table", type=click.Path(path_type=Path), metavar="TABLE", help="What haq measure wrote.")
@click.option("--repeats", default=100, show_default=True, help="Measurements of each network.")
def bench(run: Path, table: Path | None, repeats: int) -> None:
    """Run the network that a search found on this machine's kernels: predicted and measured latency, and accuracy.

    Predictions come from TABLE, or from the run's own table where that was measured here; otherwise the widths that the
    network uses are measured first. Writes RUN/bench.json.
    """
    from haq.runs import RunFolder

    folder = RunFolder.open(run)
    policy = folder.read_best().policy
    check_range("--repeats", repeats, 3)
    if any(bits.a_bits is None or bits.w_bits is None or max(bits.a_bits, bits.w_bits) > 8 for bits in policy.values()):
        raise ConfigError(f"{run}: the kernels run weights and activations of 1 to 8 bits; this network has others")
    with TerminalObserver() as observer:
        from haq.hwmodels.bench import bench as run_bench
        from haq.hwmodels.bench import int8_network
        from haq.hwmodels.deployment import deploy
        from haq.quant.evaluation import evaluate

        model, quantized, images = _open(folder, observer)
        sample = images.test.batch([0])[0]
        deployed = deploy(quantized, sample)  # refused before anything is measured
        costs = _costs(folder, table, policy, model, sample, observer)
        observer.say("running the network")
        x = images.test.batch([index % len(images.test) for index in range(costs.batch)])[0]
        shown = images.train.subset(range(min(_CALIBRATION_IMAGES, len(images.train))))
        int8 = int8_network(model, [batch for batch, _ in shown.batches(64)])
        result = run_bench(deployed, model, policy, costs, x, repeats=repeats, int8=int8)
        networks = {"float32 (PyTorch)": model, "fake-quantized": quantized, "this network": deployed}
        if int8 is not None:
            networks["int8 (PyTorch)"] = int8
        top1 = {}
        for number, (name, network) in enumerate(networks.items()):
            observer.progress("test", number, len(networks), name)
            top1[name] = evaluate(network, images.test, "ptq").top1
        observer.progress("test", len(networks), len(networks))
    _write(folder, result, top1)
    _print_bench(result, policy, top1, costs)


def _check(path: Path, device: str, batch: int, repeats: int) -> None:
    if device != "cpu":
        if device != "cuda":
            raise ConfigError(f"--device {device}: unknown; use cpu or cuda")
        import torch

        if not torch.cuda.is_available():
            raise HardwareError("--device cuda: PyTorch sees no CUDA device here; use --device cpu")
    if path.suffix != ".parquet":
        raise ConfigError(f"-o {path}: a measured table is written as .parquet; haq table converts it to .csv")
    if path.exists():
        raise ConfigError(f"-o {path} exists; remove it, or give another name")
    if not path.parent.is_dir():
        raise ConfigError(f"-o {path}: folder {str(path.parent)!r} does not exist; make it first")
    for option, value, least in (("--batch", batch, 1), ("--repeats", repeats, 3)):
        check_range(option, value, least)


def _open(folder: RunFolder, observer: TerminalObserver) -> tuple[nn.Module, nn.Module, ImageData]:
    """Returns the float network, the one that was found, and the data."""
    from haq.data import get_data
    from haq.models import open_model
    from haq.quant import load_quantized

    config = folder.read_config()
    images = get_data(config.data, config.val_images, config.seed, config.model)
    model = open_model(config.model, config.weights, images, lambda d, n: observer.progress("train float", d, n))
    if not folder.model.is_file():
        raise ConfigError(f"{folder.path} has no model.pt; finish it with `haq search --resume {folder.path}`")
    return model, load_quantized(folder.model, model), images


def _costs(
    folder: RunFolder, table: Path | None, policy: BitPolicy, model: nn.Module, sample: Tensor, observer: Any
) -> CostTable:
    """The table that predicts: the one given, the run's own if measured, or one that is measured now."""
    from haq.hwmodels import CostTable
    from haq.hwmodels.measuring import Plan, measure
    from haq.hwmodels.measuring.device import describe_device
    from haq.hwmodels.pricing import price
    from haq.hwmodels.tabular import load_table
    from haq.layers import trace

    if table is not None:
        return price(str(table), trace(model, sample), (), load_table(table).batch).table
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


def _write(folder: RunFolder, result: Bench, top1: dict[str, float]) -> None:
    import json

    from haq.files import write_text
    from haq.hwmodels.measuring.device import describe_device

    content = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in asdict(result).items()}
    content |= {"predicted_total": result.predicted_total, "top1": top1, "machine": describe_device()}
    write_text(folder.bench, json.dumps(content, indent=1) + "\n")


# What is shown


def _print_measured(costs: CostTable) -> None:
    import numpy as np

    spread, outliers = costs.details["spread"], costs.details["outliers"]
    moved = np.abs(costs.metrics["latency_ms"] / costs.details["raw_latency_ms"] - 1)
    low, high = costs.bounds("latency_ms")
    provenance = costs.provenance
    facts = {
        "device": f"{costs.hardware} ({provenance['features']})",
        "kernels": costs.version,
        "whole network": f"{format_cost('latency_ms', low)} to {format_cost('latency_ms', high)}, of which "
        f"{format_cost('latency_ms', costs.rest['latency_ms'])} are not its layers",
        "spread": f"{np.median(spread):.1%} between quartiles, {outliers.mean():.1%} outliers set aside",
        "monotone fit": f"moved the medians by {moved.mean():.1%} on average, by {moved.max():.1%} at most",
        "energy": provenance["energy"],
    }
    grid = Table.grid(padding=(0, 2))
    for label, value in facts.items():
        grid.add_row(Text(label, style="dim"), Text(value))
    console.print(grid)


def _print_bench(result: Bench, policy: BitPolicy, top1: dict[str, float], costs: CostTable) -> None:
    table = _columns("layer", "w / a", "predicted", "measured", "difference")
    for name, predicted, measured in zip(result.layers, result.predicted, result.measured, strict=True):
        bits = policy[name]
        table.add_row(Text(name), f"{bits.w_bits} / {bits.a_bits}", *_compared(predicted, measured))
    table.add_row("the rest", "", *_compared(result.predicted_rest, result.measured_rest))
    table.add_section()
    table.add_row("total", "", *_compared(result.predicted_total, result.total))
    console.print(table)
    console.print()

    networks = _columns("network", "latency", "against float32", "test top-1")
    latencies = {
        "float32 (PyTorch)": result.float32,
        "int8 (PyTorch)": result.int8,
        "this network": result.total,
        "fake-quantized": None,
    }
    for name, latency in latencies.items():
        if name in top1:
            speed = f"{result.float32 / latency:.2f}×" if latency else "–"
            networks.add_row(name, format_cost("latency_ms", latency), speed, f"{top1[name]:.4f}")
    console.print(networks)
    console.print(
        f"Batch {costs.batch}, one core, {result.kernels} kernels; medians, taken in turns; quartiles of the total are "
        f"{result.spread:.1%} apart. The rest: activation functions, additions, pooling, and PyTorch itself.",
        style="dim",
    )


def _compared(predicted: float, measured: float) -> tuple[str, str, str]:
    difference = f"{predicted / measured - 1:+.1%}" if measured else "–"
    return format_cost("latency_ms", predicted), format_cost("latency_ms", measured), difference


def _columns(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number > (1 if names[1] == "w / a" else 0) else "left")
    return table
