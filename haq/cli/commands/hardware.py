"""Commands about hardware and its costs: `haq hardware`, `haq table`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from haq.cli.options import at_least, examples, network_options, open_untrained_network
from haq.cli.output import Result, output_options, plain
from haq.cli.tables import columns, facts
from haq.cli.terminal import console
from haq.errors import ConfigError
from haq.metrics import METRICS, format_cost

if TYPE_CHECKING:
    from haq.hwmodels import CostTable
    from haq.hwmodels.accelerators.description import Description, Parameter

__all__ = ["hardware", "table"]

_TABLE_BATCH = 16  # of HAQ's published table


@click.command(epilog=examples("haq hardware", "haq hardware edge", "haq hardware my_board.yaml"))
@click.argument("name", required=False, metavar="[NAME|FILE]")
@output_options
def hardware(name: str | None) -> Result:
    """List the known hardware, or print one accelerator's parameters and their sources.

    FILE is a hardware description (.yaml) or a cost table (.parquet, .csv). With --quiet, only the names are listed.
    """
    from haq.hwmodels import describe_hardware, list_hardware
    from haq.hwmodels.pricing import is_table

    if name is None:
        found = [describe_hardware(known) for known in list_hardware()]
        console.print(_listing(found))
        console.print("pairs: legal widths, weights/activations; haq hardware NAME shows more", style="dim")
        return Result(lambda: {"hardware": found}, tuple(description.name for description in found))
    if is_table(name):
        from haq.hwmodels.tables.formats import load_table

        costs = load_table(Path(name))
        _print_table(costs)
        return Result(costs.overview, (_bounds(costs),))
    description = describe_hardware(name)
    _print_description(description)
    return Result(lambda: plain(description), (_parameters(description),))


@click.command(
    epilog=examples(
        "haq table costs.parquet",
        "haq table costs.parquet -o costs.csv",
        "haq table cycles.npy --model resnet20 --data npz:cifar10 --clock-mhz 200 --hardware mine -o costs.parquet",
        "haq table costs.parquet --clock-mhz 200 -o cycles.npy",
    )
)
@click.argument("file", type=click.Path(path_type=Path))
@network_options
@click.option("--clock-mhz", type=float, metavar="F", help="For .npy: clock of the cycles in the array.")
@click.option("--batch", default=_TABLE_BATCH, show_default=True, help="For .npy: batch size of the cycles.")
@click.option("--hardware", "device", metavar="NAME", help="For .npy: name of the hardware.  [default: the file's]")
@click.option("--measured", is_flag=True, help="For .npy: the cycles were measured, not modelled.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write .parquet, .csv or .npy here."
)
@output_options
@click.pass_context
def table(
    context: click.Context,
    /,
    file: Path,
    model: str,
    weights: str | None,
    data: str,
    clock_mhz: float | None,
    batch: int,
    device: str | None,
    measured: bool,
    output: Path | None,
) -> Result:
    """Print what a cost table holds, check it against a model, or convert it.

    FILE is .parquet, .csv, or HAQ's array of cycles, .npy, layers x 8 x 8. The array names neither layers nor clock, so
    it needs --model and --clock-mhz. For other files, --model checks that the table belongs to that model, and adds
    size and bit operations if the table lacks them.
    """
    from haq.hwmodels.pricing import open_hardware
    from haq.hwmodels.tables.formats import load_table, save_table
    from haq.layers import reachable, trace
    from haq.quant.uncovered import rest_of

    given = {name for name in context.params if context.get_parameter_source(name) == _COMMANDLINE}
    array = file.suffix.lower() == ".npy"
    if not array and (foreign := given & {"batch", "device", "measured"}):
        option = "--" + min(foreign).replace("device", "hardware")
        raise ConfigError(f"{option} is for .npy files; {str(file)!r} already contains it; leave the option out")
    if not given & {"model"} and (idle := given & {"weights", "data"}):
        raise ConfigError(f"--{min(idle)} needs --model; give it too")
    at_least({"--batch": (batch, 1)})
    network, sample = open_untrained_network(model, weights, data) if "model" in given else (None, None)
    layers = None if network is None or sample is None else trace(network, sample)
    costs = load_table(file, layers, clock_mhz, batch, device, "measured" if measured else "modelled")
    if network is not None and sample is not None and layers is not None and not array:
        rest = rest_of(reachable(network, sample), sample, layers)
        costs = open_hardware(file).price(layers, (), costs.batch, rest=rest)
    if output is not None:
        save_table(costs, output, clock_mhz)
    _print_table(costs)
    if output is not None:
        console.print(Text(f"\nwritten: {output}"), soft_wrap=True)
    brief = _bounds(costs) if output is None else str(output)
    return Result(lambda: {**costs.overview(), "file": output}, (brief,))


_COMMANDLINE = click.core.ParameterSource.COMMANDLINE


# What is shown


def _listing(descriptions: Sequence[Description]) -> Table:
    from haq.hwmodels.hardware import listed_pairs

    table = columns("hardware", "pairs", "holds", "")
    for description in descriptions:
        cells = (
            description.name,
            listed_pairs(description.pairs),
            _holds(_limits(description), "\n"),
            description.summary,
        )
        table.add_row(*map(Text, cells))
    return table


def _limits(description: Description) -> dict[str, float]:
    return {metric: limit.value for metric, limit in description.limits.items()}


def _holds(limits: Mapping[str, float], between: str = ", ") -> str:
    shown = (f"{metric} {METRICS[metric].format(limit)}" for metric, limit in limits.items())
    return between.join(shown) or "–"


def _print_description(description: Description) -> None:
    from haq.hwmodels.hardware import listed_pairs

    console.print(Text.assemble((description.name, "bold"), "  ", description.summary))
    labelled = {
        "cost model": description.kind,
        "pairs": f"{listed_pairs(description.pairs)} bits (weights/activations)",
        "holds": _holds(_limits(description)),
        "batch": f"{description.batch}, unless --batch says otherwise",
    }
    if description.ties:
        labelled["ties"] = f"{', '.join(description.ties)}; these layers get the same widths"
    console.print(facts(labelled))
    console.print(_parameters(description))


def _parameters(description: Description) -> Table:
    entries: dict[str, Parameter] = {f"limit of {metric}": limit for metric, limit in description.limits.items()}
    table = columns("parameter", "value", "unit", "source", right=("value",))
    for name, entry in {**entries, **description.parameters}.items():
        table.add_row(*map(Text, (name, f"{entry.value:.10g}", entry.unit, entry.source)))
    return table


def _print_table(costs: CostTable) -> None:
    from haq.hwmodels.hardware import listed_pairs

    first, last = costs.layers[0], costs.layers[-1]
    floating = costs.a_bits == (None,)
    pairs = f"{','.join(map(str, costs.w_bits))}/float" if floating else listed_pairs(costs.pairs)
    labelled = {
        "hardware": costs.hardware,
        "costs": f"{costs.origin}, by {costs.version}",
        "batch": str(costs.batch),
        "layers": f"{len(costs.layers)}, {first} to {last}" if len(costs.layers) > 1 else first,
        "pairs": f"{pairs} bits (weights/activations)",
        **({"holds": _holds(costs.limits)} if costs.limits else {}),
        **costs.provenance,
    }
    console.print(facts(labelled))
    console.print(_bounds(costs))


def _bounds(costs: CostTable) -> Table:
    table = columns("whole network", "at least", "at most", right=("at least", "at most"))
    for field in costs.fields:
        if field in costs.metrics:
            table.add_row(field, *(format_cost(field, total) for total in costs.bounds(field)))
    return table
