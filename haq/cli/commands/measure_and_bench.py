"""Commands that run on this machine's own kernels: `haq measure` and `haq bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from haq.cli.options import at_least, examples, naming_options, network_options, open_untrained_network
from haq.cli.output import Result, output_options
from haq.cli.tables import columns, facts
from haq.cli.terminal import TerminalObserver, console
from haq.config import parse_bits
from haq.errors import ConfigError, HardwareError
from haq.io.prefixes import short_name
from haq.metrics import format_cost
from haq.runs.relocation import Named

if TYPE_CHECKING:
    from haq.hwmodels import CostTable
    from haq.hwmodels.measuring import Plan
    from haq.search.bench import BenchedRun

__all__ = ["bench", "measure"]

_REPEATS = 60


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
@click.option("--bits", default="1-8", show_default=True, metavar="WIDTHS", help="Widths of weights and activations.")
@click.option("--batch", default=1, show_default=True, help="Batch size.")
@click.option(
    "--repeats", default=_REPEATS, show_default=True, help="Measurements of each layer at each pair of widths."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="TABLE",
    help="Cost table to write, .parquet.  [default: MODEL-DEVICE.parquet]",
)
@output_options
def measure(
    model: str, weights: str | None, data: str, device: str, bits: str, batch: int, repeats: int, output: Path | None
) -> Result:
    """Measure every layer of a network at every pair of widths on this machine, and write a cost table.

    Layers run on bit-serial kernels, on one core or on the GPU, inside the network; packing and rescaling are part of
    the time. Keep the machine quiet meanwhile. After Ctrl-C, the same command resumes the measurement. With --quiet,
    only the path of the table is printed.
    """
    path = output or Path(f"{short_name(model)}-{device}.parquet")
    _check(path, device, batch, repeats)
    widths = parse_bits(bits)
    if widths[-1] > 8:
        raise ConfigError(f"--bits {bits}: bit-serial kernels take widths of 1 to 8 bits; give widths in that range")
    with TerminalObserver() as observer:
        from haq.hwmodels.measuring import Plan
        from haq.hwmodels.measuring import measure as measured
        from haq.quant.reach import reached

        network, sample = open_untrained_network(model, weights, data)
        network, layers = reached(network, sample)
        plan = Plan(layers, widths, widths, batch, repeats, device=device)
        journal = path.with_name(path.name + ".partial")
        costs = measured(plan, network, sample, journal, lambda done, total: observer.progress("measure", done, total))
        costs.save(path)
        journal.unlink(missing_ok=True)
    _print_measured(costs, plan)
    console.print(Text(f"\nwritten: {path}"), soft_wrap=True)
    return Result(lambda: {**costs.overview(), "file": path}, (str(path),))


@click.command(
    epilog=examples(
        "haq bench runs/digits-resnet-edge-latency-10ms",
        "haq bench runs/resnet20-cpu-latency-70pct --table cpu.parquet",
    )
)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--table", type=click.Path(path_type=Path), metavar="TABLE", help="Cost table from haq measure.")
@click.option("--repeats", default=100, show_default=True, help="Measurements of each network.")
@naming_options(hardware=False)
@output_options
def bench(run: Path, table: Path | None, repeats: int, **named: str | None) -> Result:
    """Run the network of RUN on this machine's kernels, and print predicted and measured latency, and accuracy.

    Predictions come from TABLE, or from the run's own table if that was measured here; otherwise the widths that the
    network uses are measured first. Writes RUN/bench.json. With --quiet, only the table of networks is printed.
    """
    from haq.runs import RunFolder

    folder = RunFolder.open(run)
    at_least({"--repeats": (repeats, 3)})
    with TerminalObserver() as observer:
        from haq.search.bench import bench_run

        found = bench_run(folder, table, repeats, observer, Named(**named))
    _print_layers(found)
    networks = _networks(found)
    console.print(networks)
    console.print(
        f"Batch {found.costs.batch}, one core, {found.bench.kernels} kernels; medians of interleaved runs; quartiles "
        f"of the total are {found.bench.spread:.1%} apart. The rest is activation functions, additions, pooling, and "
        "PyTorch itself.",
        style="dim",
    )
    return Result(lambda: {"run": run, "batch": found.costs.batch, **_document(found)}, (networks,))


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
    at_least({"--batch": (batch, 1), "--repeats": (repeats, 3)})


# What is shown


def _print_measured(costs: CostTable, plan: Plan) -> None:
    import numpy as np

    spread, outliers = costs.details["spread"], costs.details["outliers"]
    moved = np.abs(costs.metrics["latency_ms"] / costs.details["raw_latency_ms"] - 1)
    low, high = costs.bounds("latency_ms")
    provenance = costs.provenance
    labelled = {
        "network": f"{len(plan.layers)} layers of {len(plan.shapes)} shapes, {len(plan.cells)} pairs of widths",
        "device": f"{costs.hardware} ({provenance['features']})",
        "kernels": costs.version,
        "whole network": f"{format_cost('latency_ms', low)} to {format_cost('latency_ms', high)}, of which "
        f"{format_cost('latency_ms', costs.rest['latency_ms'])} outside its layers",
        "spread": f"{np.median(spread):.1%} between quartiles, {outliers.mean():.1%} outliers set aside",
        "monotone fit": f"moved the medians by {moved.mean():.1%} on average, by {moved.max():.1%} at most",
        "energy": provenance["energy"],
    }
    console.print(facts(labelled), end="")


def _print_layers(found: BenchedRun) -> None:
    result = found.bench
    numbers = "predicted", "measured", "difference"
    table = columns("layer", "w / a", *numbers, right=numbers)
    for name, predicted, measured in zip(result.layers, result.predicted, result.measured, strict=True):
        bits = found.policy[name]
        table.add_row(Text(name), f"{bits.w_bits} / {bits.a_bits}", *_compared(predicted, measured))
    table.add_row("the rest", "", *_compared(result.predicted_rest, result.measured_rest))
    table.add_section()
    table.add_row("total", "", *_compared(result.predicted_total, result.total))
    console.print(table)
    console.print()


def _networks(found: BenchedRun) -> Table:
    numbers = "latency", "against float32", "test top-1"
    table = columns("network", *numbers, right=numbers)
    for name, latency in found.latencies_ms.items():
        speed = f"{found.bench.float32 / latency:.2f}×" if latency else "–"
        table.add_row(name, format_cost("latency_ms", latency), speed, f"{found.top1[name]:.4f}")
    return table


def _compared(predicted: float, measured: float) -> tuple[str, str, str]:
    difference = f"{predicted / measured - 1:+.1%}" if measured else "–"
    return format_cost("latency_ms", predicted), format_cost("latency_ms", measured), difference


def _document(found: BenchedRun) -> dict[str, Any]:
    result = found.bench
    layers = [
        {"layer": name, "w_bits": found.policy[name].w_bits, "a_bits": found.policy[name].a_bits,
         "predicted_ms": predicted, "measured_ms": measured}
        for name, predicted, measured in zip(result.layers, result.predicted, result.measured, strict=True)
    ]  # fmt: skip
    return {
        "predicted_ms": result.predicted_total,
        "measured_ms": result.total,
        "spread": result.spread,
        "kernels": result.kernels,
        "rest": {"predicted_ms": result.predicted_rest, "measured_ms": result.measured_rest},
        "layers": layers,
        "networks": [
            {"network": name, "latency_ms": latency, "test_top1": found.top1[name]}
            for name, latency in found.latencies_ms.items()
        ],
        "machine": found.machine,
    }
