"""`haq profile`: the cost of each layer, and whether arithmetic or memory binds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from haq.cli.options import DEFAULTS, at_least, examples, network_options, open_untrained_network
from haq.cli.output import Result, output_options
from haq.cli.tables import columns, left_over
from haq.cli.terminal import console
from haq.errors import ConfigError
from haq.metrics import METRICS, format_cost, layer_fields, metric_of
from haq.policy import LayerBits

if TYPE_CHECKING:
    from haq.hwmodels import Hardware, LayerCost
    from haq.layers import LayerSpec
    from haq.layers.rest import Rest

__all__ = ["profile"]

_COUNTED = ("size_bytes", "bops")  # the same on all hardware: left out of the tables
_DRAWING = 76  # columns


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
@click.option("--batch", type=int, help="Batch size to price.  [default: the usual one of the hardware]")
@click.option(
    "--bits",
    default="8/8,4/4",
    show_default=True,
    metavar="PAIRS",
    help="Pairs of widths to price, weights/activations.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the roofline as PNG.")
@output_options
def profile(
    model: str, weights: str | None, data: str, device: str, batch: int | None, bits: str, output: Path | None
) -> Result:
    """Print the cost of each layer and what binds it, and draw the roofline.

    Only shapes matter: a built-in model needs no weights here. Rows are in order of execution; shares are of latency.
    With --quiet, only the tables are printed.
    """
    from haq.hwmodels import CostTable
    from haq.hwmodels.hardware import price_layer
    from haq.hwmodels.liveness import plan_or_none
    from haq.hwmodels.pricing import excess, open_hardware
    from haq.hwmodels.rest_costs import rest_costs, widest
    from haq.hwmodels.roofline import check_png, draw, roofline, write_png
    from haq.quant.reach import reached
    from haq.quant.uncovered import rest_of

    pricing = open_hardware(device)
    chosen = pricing.source
    if isinstance(chosen, CostTable):
        raise ConfigError(f"--hardware {device}: a cost table does not say what binds a layer; see haq table {device}")
    if output is not None:
        check_png(output)
    batch = pricing.batch if batch is None else batch
    at_least({"--batch": (batch, 1)})
    pairs, left_out = _legal(_parsed_pairs(bits), chosen)
    network, sample = open_untrained_network(model, weights, data)
    network, layers = reached(network, sample)
    rest = rest_of(network, sample, layers)
    beside = rest_costs(chosen, layers, rest, batch)
    priced = {pair: [price_layer(chosen, layer, pair, batch) for layer in layers] for pair in pairs}
    rooflines = [roofline(chosen, layers, costs, pair, batch) for pair, costs in priced.items()]
    title = f"{model} on {chosen.name}, batch {batch}"
    if output is not None:
        write_png(rooflines, title, output)

    console.print(Text(title, style="bold"))
    if left_out:
        console.print(Text(left_out, style="dim"))
    memory = plan_or_none(network, sample)
    excesses = {pair: excess(chosen, layers, pair, batch, memory, rest) for pair in pairs}
    tables = {pair: _costs_table(pair, layers, costs, rest, beside) for pair, costs in priced.items()}
    for pair, shown in tables.items():
        console.print()
        console.print(shown)
        if too_much := _too_much(chosen, excesses[pair]):
            console.print(Text(f"does not fit: {too_much}", style="yellow"))
    if rest:
        console.print(left_over(rest))
        if rest.macs:
            about = f"the rest's costs are an estimate: its {_count(rest.macs)} MACs at {_shown(widest(chosen))} bits"
            console.print(Text(about, style="dim"))
    console.print()
    drawing = draw(rooflines, width=max(40, min(_DRAWING, console.width)))
    console.print(Text(drawing), soft_wrap=True)
    if output is not None:
        console.print(Text(f"\nroofline: {output}"), soft_wrap=True)

    def document() -> dict[str, Any]:
        return {
            "model": model,
            "hardware": chosen.name,
            "batch": batch,
            "limits": {METRICS[metric].field: limit for metric, limit in chosen.limits.items()},
            "rest": rest.described(),
            "pairs": [_priced(pair, layers, costs, beside, excesses[pair]) for pair, costs in priced.items()],
            "file": output,
        }

    return Result(document, tuple(tables.values()))


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
    """Returns the pairs that the hardware runs, and a sentence about the others, empty if there are none."""
    from haq.hwmodels.hardware import listed_pairs

    legal = [pair for pair in pairs if pair in chosen.pairs]
    runs = f"hardware {chosen.name!r} runs {listed_pairs(chosen.pairs)} bits (weights/activations)"
    if not legal:
        raise ConfigError(f"--bits {', '.join(map(_shown, pairs))}: {runs}; give some of these pairs")
    others = ", ".join(_shown(pair) for pair in pairs if pair not in legal)
    return legal, f"left out: {others}; {runs}" if others else ""


def _shown(pair: LayerBits) -> str:
    return f"{pair.w_bits}/{pair.a_bits}"


def _priced(
    pair: LayerBits,
    layers: Sequence[LayerSpec],
    costs: Sequence[LayerCost],
    beside: Mapping[str, float],
    excess: Mapping[str, float],
) -> dict[str, Any]:
    """Returns the costs at one pair of widths as plain JSON types.

    Args:
        pair: The widths.
        layers: Of the network.
        costs: Of each layer.
        beside: Of the rest of the network.
        excess: What the hardware does not hold.
    """
    buffers = {metric.layer_field: 0.0 for metric in METRICS.values() if metric.layer_field}
    rows = []
    for layer, cost in zip(layers, costs, strict=True):
        prices = {**cost.values, **{field: cost.values.get(field, none) for field, none in buffers.items()}}
        why = {"compute_ms": cost.compute_ms, "memory_ms": cost.memory_ms, "memory_bytes": cost.memory_bytes}
        counts = {"kind": layer.kind, "macs": layer.macs, "params": layer.params}
        rows.append({"layer": layer.name, **counts, **prices, **why, "bound": cost.bound})
    totals = {field: sum(cost[field] for cost in costs) + beside.get(field, 0) for field in _added(costs)}
    return {**asdict(pair), **totals, "exceeded": excess, "rest": beside, "layers": rows}


def _added(costs: Sequence[LayerCost]) -> list[str]:
    """Returns the fields that add up over the layers, in the order of `METRICS`."""
    buffers = {metric.layer_field for metric in METRICS.values()}
    given = [field for field in layer_fields() if field in costs[0].values and field not in buffers]
    return [field for field in given if metric_of(field).combine == "sum"]


# What is shown


def _too_much(chosen: Hardware, excess: Mapping[str, float]) -> str:
    """Returns what the network needs beyond the hardware's limits, in words; empty if it fits."""
    limits = {METRICS[metric].field: (metric, limit) for metric, limit in chosen.limits.items()}
    return ", ".join(
        f"{limits[field][0]} {format_cost(field, cost)}, but {chosen.name} holds {format_cost(field, limits[field][1])}"
        for field, cost in excess.items()
    )


def _costs_table(
    pair: LayerBits,
    layers: Sequence[LayerSpec],
    costs: Sequence[LayerCost],
    rest: Rest,
    beside: Mapping[str, float],
) -> Table:
    bound = sum(cost.bound == "memory" for cost in costs)
    fields = [field for field in _added(costs) if field not in _COUNTED]
    totals = {field: sum(cost[field] for cost in costs) + beside.get(field, 0) for field in fields}

    def prices(values: Mapping[str, float], share: str = "") -> dict[str, str]:
        """Returns title → cell; the share is that of latency."""
        cells = {metric_of(field).name: format_cost(field, values[field]) for field in fields}
        return {"latency": cells.pop("latency"), "share": share, **cells} if "latency" in cells else cells

    numbers = "MACs", "params", *prices(totals)
    table = columns(
        "layer", "kind", *numbers, "bound",
        right=numbers, title=f"{_shown(pair)} bits: memory binds {bound} of {len(layers)} layers",
    )  # fmt: skip
    latency = totals.get("latency_ms", 0.0)

    def share(values: Mapping[str, float]) -> str:
        return f"{values['latency_ms'] / latency:.1%}" if latency else "–"

    for layer, cost in zip(layers, costs, strict=True):
        counts = _count(layer.macs), _count(layer.params)
        shown = prices(cost.values, share(cost.values)).values()
        table.add_row(Text(layer.name), layer.kind, *counts, *shown, cost.bound)
    if rest:
        values = {**dict.fromkeys(fields, 0.0), **beside}
        counts = _count(rest.macs), _count(rest.weights)
        table.add_row("rest", "not quantized", *counts, *prices(values, share(values)).values(), "")
    table.add_section()
    macs, params = sum(layer.macs for layer in layers), sum(layer.params for layer in layers)
    counts = _count(macs + rest.macs), _count(params + rest.weights)
    table.add_row("all" if rest else f"all {len(layers)}", "", *counts, *prices(totals).values(), "")
    return table


def _count(number: int) -> str:
    """Formats a count of MACs or weights like bit operations, without name and space."""
    return format_cost("bops", number).removesuffix("bops").replace(" ", "")
