"""Commands about hardware and its costs: `haq hardware`, `haq profile`, `haq table`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from haq.cli.options import DEFAULTS, examples, network_options
from haq.cli.terminal import console
from haq.constraints import METRICS, format_cost
from haq.errors import ConfigError
from haq.policy import LayerBits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from haq.hwmodels import CostTable, Hardware, LayerCost
    from haq.hwmodels.description import Description, Parameter
    from haq.hwmodels.memory import MemoryPlan
    from haq.layers import LayerSpec

__all__ = ["hardware", "profile", "table"]

_TABLE_BATCH = 16  # that HAQ's published table is for
_DRAWING = 76
_SEED = 0  # of the split of the data; the shape of an image does not depend on it


@click.command(epilog=examples("haq hardware", "haq hardware edge", "haq hardware my_board.yaml"))
@click.argument("name", required=False, metavar="[NAME|FILE]")
def hardware(name: str | None) -> None:
    """List the hardware, or print one's parameters and their sources.

    FILE is a hardware description (.yaml) or a cost table (.parquet, .csv).
    """
    from haq.hwmodels import describe_hardware, list_hardware
    from haq.hwmodels.pricing import is_table

    if name is None:
        console.print(_listing([describe_hardware(known) for known in list_hardware()]))
        console.print("pairs: legal widths, weights/activations; haq hardware NAME says more", style="dim")
    elif is_table(name):
        from haq.hwmodels.tabular import load_table

        _print_table(load_table(Path(name)))
    else:
        _print_description(describe_hardware(name))


@click.command(
    epilog=examples(
        "haq profile",
        "haq profile --model resnet20 --data npz:cifar10 --hardware cloud -o roofline.png",
        "haq profile --model my_net.py:build --data my_data.py:load --hardware my_board.yaml --bits 8/8,2/4",
    )
)
@network_options
@click.option(
    "--hardware",
    "device",
    default=DEFAULTS.hardware,
    show_default=True,
    metavar="NAME",
    help="Name as in haq hardware, or a YAML file.",
)
@click.option("--batch", type=int, help="Batch size that costs are for.  [default: the usual one of the hardware]")
@click.option(
    "--bits", default="8/8,4/4", show_default=True, metavar="PAIRS", help="Widths, weights/activations, to price at."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the roofline as PNG.")
def profile(
    model: str, weights: str | None, data: str, device: str, batch: int | None, bits: str, output: Path | None
) -> None:
    """Print what each layer costs and what binds it, and draw the roofline.

    Only shapes matter: a built-in model needs no weights here. Rows are in order of execution; shares are of latency.
    """
    from haq.hwmodels import get_hardware
    from haq.hwmodels.liveness import plan_or_none
    from haq.hwmodels.pricing import default_batch, is_table
    from haq.hwmodels.roofline import check_png, draw, roofline, write_png
    from haq.layers import trace

    if is_table(device):
        raise ConfigError(f"--hardware {device}: a cost table does not say what binds a layer; see haq table {device}")
    if output is not None:
        check_png(output)
    chosen = get_hardware(device)
    batch = default_batch(device) if batch is None else batch
    _check_batch(batch)
    pairs, left_out = _legal(_parsed_pairs(bits), chosen)
    network, sample = _opened(model, weights, data)
    layers = trace(network, sample)
    priced = {pair: [chosen.cost(layer, pair, batch) for layer in layers] for pair in pairs}
    rooflines = [roofline(chosen, layers, costs, pair, batch) for pair, costs in priced.items()]
    title = f"{model} on {chosen.name}, batch {batch}"
    if output is not None:
        write_png(rooflines, title, output)

    console.print(Text(title, style="bold"))
    if left_out:
        console.print(Text(left_out, style="dim"))
    for pair, costs in priced.items():
        console.print()
        console.print(_costs_table(pair, layers, costs))
        if too_much := _too_much(chosen, layers, pair, batch, plan_or_none(network, sample)):
            console.print(Text(f"does not fit: {too_much}", style="yellow"))
    console.print()
    drawing = draw(rooflines, width=max(40, min(_DRAWING, console.width)))
    console.print(Text(drawing), soft_wrap=True)
    if output is not None:
        console.print(Text(f"\nroofline: {output}"), soft_wrap=True)


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
@click.option("--clock-mhz", type=float, metavar="F", help="Of .npy: the clock whose cycles the array holds.")
@click.option("--batch", default=_TABLE_BATCH, show_default=True, help="Of .npy: batch size that cycles are for.")
@click.option("--hardware", "device", metavar="NAME", help="Of .npy: name of the hardware.  [default: the file's]")
@click.option("--measured", is_flag=True, help="Of .npy: the cycles were measured, not modelled.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write .parquet, .csv or .npy here."
)
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
) -> None:
    """Print what a cost table holds, check it against a model, or write it in another form.

    FILE is .parquet, .csv, or HAQ's array of cycles, .npy, layers x 8 x 8, which names neither layers nor clock: it
    needs --model and --clock-mhz. For the other forms --model checks that the table is that model's, and adds size and
    bit operations where the table lacks them.
    """
    from haq.hwmodels.pricing import price
    from haq.hwmodels.tabular import load_table, save_table
    from haq.layers import trace

    given = {name for name in context.params if context.get_parameter_source(name) == _COMMANDLINE}
    array = file.suffix.lower() == ".npy"
    if not array and (foreign := given & {"batch", "device", "measured"}):
        option = "--" + min(foreign).replace("device", "hardware")
        raise ConfigError(f"{option} is for .npy files; {str(file)!r} says it itself")
    if not given & {"model"} and (idle := given & {"weights", "data"}):
        raise ConfigError(f"--{min(idle)} goes with --model; give it, too")
    _check_batch(batch)
    layers = trace(*_opened(model, weights, data)) if "model" in given else None
    costs = load_table(file, layers, clock_mhz, batch, device, "measured" if measured else "modelled")
    if layers is not None and not array:
        costs = price(str(file), layers, (), costs.batch).table
    if output is not None:
        save_table(costs, output, clock_mhz)
    _print_table(costs)
    if output is not None:
        console.print(Text(f"\nwritten: {output}"), soft_wrap=True)


_COMMANDLINE = click.core.ParameterSource.COMMANDLINE


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise ConfigError(f"--batch {batch}: must be at least 1")


def _parsed_pairs(text: str) -> list[LayerBits]:
    """Reads pairs such as `8/8,4/4`."""
    pairs: dict[LayerBits, None] = {}
    for part in text.split(","):
        w_bits, slash, a_bits = (side.strip() for side in part.partition("/"))
        if not (slash and w_bits.isdecimal() and a_bits.isdecimal()):
            raise ConfigError(f"--bits {text}: cannot read {part!r}; write pairs, weights/activations, like 8/8,4/4")
        try:
            pairs[LayerBits(int(w_bits), int(a_bits))] = None
        except ConfigError as error:
            raise ConfigError(f"--bits {text}: {error}") from None
    return list(pairs)


def _legal(pairs: Sequence[LayerBits], chosen: Hardware) -> tuple[list[LayerBits], str]:
    """Returns the pairs that the hardware runs, and a sentence on the others, empty where there are none."""
    from haq.hwmodels.hardware import listed_pairs

    legal = [pair for pair in pairs if pair in chosen.pairs]
    runs = f"hardware {chosen.name!r} runs {listed_pairs(chosen.pairs)} bits (weights/activations)"
    if not legal:
        raise ConfigError(f"--bits {', '.join(map(_shown, pairs))}: {runs}; give pairs of these")
    others = ", ".join(_shown(pair) for pair in pairs if pair not in legal)
    return legal, f"left out: {others}; {runs}" if others else ""


def _shown(pair: LayerBits) -> str:
    return f"{pair.w_bits}/{pair.a_bits}"


def _opened(model: str, weights: str | None, data: str) -> tuple[nn.Module, Tensor]:
    """Returns the network, untrained where it is built in, and a sample; shapes are all that counts."""
    from haq.data import get_data
    from haq.models import open_untrained

    images = get_data(data, DEFAULTS.val_images, _SEED, model)
    return open_untrained(model, weights, images), images.train.batch([0])[0]


def _too_much(
    chosen: Hardware, layers: Sequence[LayerSpec], pair: LayerBits, batch: int, memory: MemoryPlan | None
) -> str:
    """Says what the network takes beyond what the hardware holds; empty where it fits."""
    from haq.hwmodels import CostTable
    from haq.policy import BitPolicy

    widths = (pair.w_bits or 0,), (pair.a_bits or 0,)
    costs = CostTable.build(chosen, layers, *widths, batch, memory).cost(
        BitPolicy({layer.name: pair for layer in layers})
    )
    limits = ((metric, METRICS[metric].field, limit) for metric, limit in chosen.limits.items())
    return ", ".join(
        f"{metric} {format_cost(field, costs[field])}, and {chosen.name} holds {format_cost(field, limit)}"
        for metric, field, limit in limits
        if costs.get(field, 0.0) > limit
    )


# What is shown


def _listing(descriptions: Sequence[Description]) -> Table:
    from haq.hwmodels.hardware import listed_pairs

    columns = _columns({"hardware": "left", "pairs": "left", "holds": "left", "": "left"})
    for description in descriptions:
        columns.add_row(
            *map(
                Text,
                (description.name, listed_pairs(description.pairs), _holds(description, "\n"), description.summary),
            )
        )
    return columns


def _holds(description: Description, between: str = ", ") -> str:
    limits = (
        f"{metric} {format_cost(METRICS[metric].field, limit.value)}" for metric, limit in description.limits.items()
    )
    return between.join(limits) or "–"


def _print_description(description: Description) -> None:
    from haq.hwmodels.hardware import listed_pairs

    console.print(Text.assemble((description.name, "bold"), "  ", description.summary))
    facts = {
        "cost model": description.kind,
        "pairs": f"{listed_pairs(description.pairs)} bits (weights/activations)",
        "holds": _holds(description),
        "batch": f"{description.batch}, unless --batch says otherwise",
    }
    console.print(_facts(facts))
    entries: dict[str, Parameter] = {f"limit of {metric}": limit for metric, limit in description.limits.items()}
    columns = _columns({"parameter": "left", "value": "right", "unit": "left", "source": "left"})
    for name, entry in {**entries, **description.parameters}.items():
        columns.add_row(*map(Text, (name, f"{entry.value:.10g}", entry.unit, entry.source)))
    console.print(columns)


def _print_table(costs: CostTable) -> None:
    from haq.hwmodels.hardware import listed_pairs

    first, last = costs.layers[0], costs.layers[-1]
    floating = costs.a_bits == (None,)
    pairs = f"{','.join(map(str, costs.w_bits))}/float" if floating else listed_pairs(costs.pairs)
    facts = {
        "hardware": costs.hardware,
        "costs": f"{costs.origin}, by {costs.version}",
        "batch": str(costs.batch),
        "layers": f"{len(costs.layers)}, {first} to {last}" if len(costs.layers) > 1 else first,
        "pairs": f"{pairs} bits (weights/activations)",
        **costs.provenance,
    }
    console.print(_facts(facts))
    columns = _columns({"whole network": "left", "at least": "right", "at most": "right"})
    for field in costs.fields:
        if field in costs.metrics:
            columns.add_row(field, *(format_cost(field, total) for total in costs.bounds(field)))
    console.print(columns)


def _costs_table(pair: LayerBits, layers: Sequence[LayerSpec], costs: Sequence[LayerCost]) -> Table:
    names = {"layer": "left", "kind": "left", "MACs": "right", "params": "right"}
    bound = sum(cost.bound == "memory" for cost in costs)
    columns = _columns(
        {**names, "latency": "right", "share": "right", "energy": "right", "bound": "left"},
        f"{_shown(pair)} bits: memory binds {bound} of {len(layers)} layers",
    )
    latency, energy = sum(cost.latency_ms for cost in costs), sum(cost.energy_mj for cost in costs)
    for layer, cost in zip(layers, costs, strict=True):
        share = f"{cost.latency_ms / latency:.1%}" if latency else "–"
        prices = (format_cost("latency_ms", cost.latency_ms), share, format_cost("energy_mj", cost.energy_mj))
        columns.add_row(Text(layer.name), layer.kind, _count(layer.macs), _count(layer.params), *prices, cost.bound)
    columns.add_section()
    columns.add_row(
        f"all {len(layers)}", "", _count(sum(layer.macs for layer in layers)),
        _count(sum(layer.params for layer in layers)), format_cost("latency_ms", latency), "",
        format_cost("energy_mj", energy), "",
    )  # fmt: skip
    return columns


def _count(number: int) -> str:
    """Writes a count of MACs or weights as bit operations are written, without name and space."""
    return format_cost("bops", number).removesuffix("bops").replace(" ", "")


def _facts(facts: Mapping[str, str]) -> Padding:
    grid = Table.grid(padding=(0, 2))
    for label, value in facts.items():
        grid.add_row(Text(label, style="dim"), Text(value, overflow="fold"))
    return Padding(grid, (0, 0, 1, 0))


def _columns(justified: Mapping[str, str], title: str | None = None) -> Table:
    columns = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", show_edge=False, title=title,
        title_justify="left", title_style="bold",
    )  # fmt: skip
    for name, side in justified.items():
        columns.add_column(name, justify="right" if side == "right" else "left", overflow="fold", vertical="top")
    return columns
