"""Widths as text: the bit config for programs, and the table of layers for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import yaml

from haq.errors import ConfigError, HardwareError, did_you_mean
from haq.layers import LayerSpec
from haq.policy import BitPolicy, Width
from haq.runs import RunFolder

__all__ = ["POLICY_VERSION", "Row", "rows", "to_csv", "to_json", "to_markdown", "to_yaml"]

POLICY_VERSION = 1
"""Version of the bit config, which `policy.schema.json` beside this file describes."""


@dataclass(frozen=True)
class Row:
    """One layer of the table.

    Attributes:
        layer: Module path.
        kind: As in `LayerSpec`, such as `conv` or `embedding`.
        shape: Shape of the weight, such as 16x3x3x3.
        macs: Multiply-accumulates for one sample.
        weights: Number of weights.
        w_bits: Width of the weights, `None` for floating point.
        a_bits: Width of the activations that the layer reads, `None` for floating point.
        latency_share: Share of the priced latency of the whole network; `None` if the run has no latencies.
    """

    layer: str
    kind: str
    shape: str
    macs: int
    weights: int
    w_bits: Width
    a_bits: Width
    latency_share: float | None


def to_json(policy: BitPolicy) -> str:
    """Returns the bit config as JSON; `BitPolicy.from_dict` and `haq quantize --policy` read it."""
    return json.dumps(_config(policy), indent=2, ensure_ascii=False) + "\n"


def to_yaml(policy: BitPolicy) -> str:
    """Returns the same as YAML."""
    return yaml.safe_dump(_config(policy), sort_keys=False, allow_unicode=True)


def _config(policy: BitPolicy) -> dict[str, Any]:
    return {"version": POLICY_VERSION, **policy.to_dict()}


def rows(run: RunFolder, policy: BitPolicy) -> list[Row]:
    """Returns the table of a run's layers, in the order in which they run.

    Raises:
        ConfigError: The policy names a layer that the run does not have.
    """
    layers = {layer.name: layer for layer in run.read_layers()}
    for name in policy:
        if name not in layers:
            raise ConfigError(
                f"layer {name!r} of {run.path / 'best.json'} is not in layers.json{did_you_mean(name, layers)}; the "
                f"files are from different runs, so search again"
            )
    shares = _latency_shares(run, policy)
    table = []
    for name, layer in layers.items():
        bits = policy.get(name)
        widths = (bits.w_bits, bits.a_bits) if bits else (None, None)
        shape = "x".join(map(str, _shape(layer)))
        table.append(Row(name, layer.kind, shape, layer.macs, layer.params, *widths, shares.get(name)))
    return table


def _shape(layer: LayerSpec) -> tuple[int, ...]:
    """Returns the shape of the layer's weight."""
    if layer.is_lookup:
        return layer.in_channels, layer.out_channels
    if layer.kind == "transposed":
        return (layer.in_channels, layer.out_channels // layer.groups, *layer.kernel)
    inputs = layer.in_channels // layer.groups
    return (layer.out_channels, inputs, *(() if layer.kind == "linear" else layer.kernel))


def _latency_shares(run: RunFolder, policy: BitPolicy) -> dict[str, float]:
    """Returns each layer's share; empty if the run has no table, or one that does not price the policy."""
    if not run.costs.is_file():
        return {}
    from haq.hwmodels.tables.table import CostTable

    try:
        table = CostTable.load(run.costs)
        latencies = table.layer_costs(policy, "latency_ms")
    except HardwareError:
        return {}
    total = table.cost(policy)["latency_ms"]
    return {name: float(latency) / total for name, latency in zip(table.layers, latencies, strict=True) if total > 0}


def to_csv(table: Iterable[Row]) -> str:
    """Returns the table with a header line; an empty cell means floating point, or an unknown share."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    for row in table:
        share = "" if row.latency_share is None else f"{row.latency_share:.6f}"
        writer.writerow(["" if cell is None else cell for cell in (*astuple(row)[:-1], share)])
    return out.getvalue()


def to_markdown(table: Sequence[Row]) -> str:
    """Returns the table in Markdown, without the latency column if no latency is known."""
    names = ["layer", "kind", "shape", "MACs", "weights", "w_bits", "a_bits", "latency"]
    cells = [
        [
            f"`{row.layer}`",
            row.kind,
            row.shape.replace("x", "×"),
            f"{row.macs:,}",
            f"{row.weights:,}",
            *("float" if width is None else str(width) for width in (row.w_bits, row.a_bits)),
            "" if row.latency_share is None else f"{row.latency_share:.1%}",
        ]
        for row in table
    ]
    if all(row.latency_share is None for row in table):
        names, cells = names[:-1], [line[:-1] for line in cells]
    rule = ["---"] * 3 + ["---:"] * (len(names) - 3)
    lines = [names, rule, *([cell.replace("|", "\\|") for cell in line] for line in cells)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
