"""The data that the page's scripts draw, as compact JSON: a page of 5,000 policies must stay small."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from haq.hwmodels import CostTable
from haq.metrics import Metric, layer_fields, metric_of
from haq.policy import LayerBits
from haq.report import summary_text
from haq.report.details import Bench, Details, Scored
from haq.report.summary import Level, Summary

__all__ = ["embedded", "looks", "payload"]

_DIGITS = 5
_LEAST_KL = 1e-6  # a divergence of 0 has no place on a logarithmic axis
# One character stands for a pair of widths; none of these needs an escape in JSON or in HTML
_ALPHABET = "".join(chr(code) for code in (*range(48, 60), *range(63, 92), *range(97, 123), *range(0xC0, 0x180)))


def payload(summary: Summary, details: Details) -> dict[str, Any]:
    """Returns plain JSON types.

    Columns are lists of their own, as `{"latency_ms": [...], ...}`; a policy is named by its place in them. The widths
    of a policy are one string with a character for each layer, which stands for an entry of `pairs`.
    """
    policies = details.policies
    place = {policy.number: index for index, policy in enumerate(policies) if policy.number is not None}
    named = {policy.origin: index for index, policy in enumerate(policies) if policy.number is None}
    points = [
        (index, point)
        for point in (*summary.points, *summary.baselines)
        if (index := place.get(point.number) if point.number is not None else named.get(point.origin)) is not None
    ]
    fields = _fields(summary, policies)
    levels = sorted({point.level for _, point in points})
    origins = list(dict.fromkeys(policy.origin for policy in policies))
    pairs = [pair for pair, _ in Counter(pair for policy in policies for pair in policy.bits or ()).most_common()]
    return {
        "name": summary.name,
        "axis": summary.axis,
        "quality": summary.ranked_by,
        "batch": summary.batch,
        "metrics": _metrics(summary, fields),
        "looks": looks(fields),
        "levels": [{"steps": level.steps, "name": _level(level)} for level in levels],
        "origins": origins,
        "layers": details.layers,
        "pairs": [[pair.w_bits, pair.a_bits] for pair in pairs],
        "alphabet": _ALPHABET[: len(pairs)],
        "policies": {
            "number": [policy.number for policy in policies],
            "origin": [origins.index(policy.origin) for policy in policies],
            "bits": [_word(policy.bits, {pair: _ALPHABET[i] for i, pair in enumerate(pairs)}) for policy in policies],
            "elapsed": [_short(policy.elapsed_s) for policy in policies],
            "cost": {field: [_short(policy.cost.get(field)) for policy in policies] for field in fields},
        },
        "scores": {
            "policy": [index for index, _ in points],
            "level": [levels.index(point.level) for _, point in points],
            "top1": [_short(point.top1) for _, point in points],
            "loss": [_short(point.loss) for _, point in points],
            "kl": [None if point.kl is None else _short(max(point.kl, _LEAST_KL)) for _, point in points],
        },
        "front": [place[point.number] for point in summary.front if point.number in place],
        "left": summary.rest.described() if summary.rest else None,
        "chosen": None if summary.chosen is None else place.get(summary.chosen),
        "float": {"cost": details.float_cost, "top1": details.float_top1, "loss": details.float_loss, "kl": None},
        "costs": _costs(details.table, details.names, pairs),
        "heat_maps": [vars(heat_map) for heat_map in details.heat_maps],
        "bench": _bench(details.bench),
    }


def embedded(content: Mapping[str, Any]) -> str:
    """Returns JSON for a `<script type="application/json">`; it cannot end the element or open a comment."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _level(level: Level) -> str:
    return "floating point" if level.fidelity == "float" else summary_text.training(level.steps)


def _fields(summary: Summary, policies: Iterable[Scored]) -> list[str]:
    found = {field for policy in policies for field, value in policy.cost.items() if value is not None}
    return [field for field in dict.fromkeys((summary.axis, *summary.fields)) if field in found]


def _metrics(summary: Summary, fields: Iterable[str]) -> list[dict[str, Any]]:
    return [{"field": field, "name": metric_of(field).name, "limit": summary.limits.get(field)} for field in fields]


def looks(fields: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns what charts need to show each field, and latency, which measurements have."""
    return {
        metric.field: {
            "title": metric.title,
            "scales": metric.scales,
            "ticks": _ticks(metric),
            "per_batch": metric.per_batch,
        }
        for metric in map(metric_of, dict.fromkeys((*fields, "latency_ms")))
    }


def _ticks(metric: Metric) -> dict[str, str]:
    """Returns Plotly's options for the labels of an axis: with prefixes where people read more than the kept unit."""
    if len(metric.scales) > 1 and all(factor >= 1 for factor, _ in metric.scales):
        return {"ticksuffix": metric.kept_unit, "tickformat": "~s"}
    unit = next((unit for factor, unit in metric.scales if factor == 1), metric.kept_unit)
    return {"ticksuffix": f" {unit}".rstrip()}


def _word(bits: Sequence[LayerBits] | None, letters: Mapping[LayerBits, str]) -> str | None:
    return None if bits is None else "".join(letters[pair] for pair in bits)


def _costs(table: CostTable | None, layers: tuple[str, ...], pairs: Sequence[LayerBits]) -> dict[str, Any] | None:
    """Returns the cost of each layer at each pair of widths that a policy has, `[layer][pair]`."""
    if table is None:
        return None
    places: list[tuple[int, int] | None] = [
        (table.w_bits.index(pair.w_bits), table.a_bits.index(pair.a_bits)) if pair in table.pairs else None
        for pair in pairs
        if pair.w_bits is not None
    ]
    if len(places) < len(pairs):
        return None
    rows = [table.layers.index(name) for name in layers]

    def cells(values: Any) -> list[list[float | None]]:
        return [[_short(float(values[row, *place])) if place else None for place in places] for row in rows]

    bound = table.details.get("memory_bound")
    added = [field for field in layer_fields() if field in table.additive and metric_of(field).combine == "sum"]
    return {
        "by": {field: cells(table.metrics[field]) for field in added},
        "rest": {field: _short(value) for field, value in table.rest.items()},
        "memory_bound": None if bound is None else cells(bound),
        "origin": table.origin,
    }


def _bench(bench: Bench | None) -> dict[str, Any] | None:
    return None if bench is None else {**vars(bench), "networks": dict(bench.networks)}


def _short(value: float | None) -> float | int | None:
    """Rounds to the digits that a picture shows; unknown and infinite values become null."""
    if value is None or not isfinite(value):
        return None
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded
