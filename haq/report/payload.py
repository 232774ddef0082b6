"""What the page's script draws, as compact JSON: a page of 5,000 policies must stay small."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from haq.constraints import METRICS
from haq.hwmodels import CostTable
from haq.policy import LayerBits
from haq.report import summary_text
from haq.report.details import Bench, Details, Scored
from haq.report.summary import Level, Summary

__all__ = ["embedded", "payload"]

_ADDED = ("latency_ms", "energy_mj", "size_bytes", "bops")  # what layers have a share of; of ram the peak counts
_DIGITS = 5
_LEAST_KL = 1e-6  # a divergence of 0 has no place on a logarithmic axis
# One character stands for a pair of widths; none of these needs an escape in JSON or in HTML
_ALPHABET = "".join(chr(code) for code in (*range(48, 60), *range(63, 92), *range(97, 123), *range(0xC0, 0x180)))


def payload(summary: Summary, details: Details) -> dict[str, Any]:
    """Returns plain JSON types.

    Columns are kept apart, as `{"latency_ms": [...], ...}`; policies are told by their place in them. The widths of a
    policy are one string, a character a layer, each standing for an entry of `pairs`.
    """
    policies = details.policies
    place = {policy.number: index for index, policy in enumerate(policies) if policy.number is not None}
    named = {policy.origin: index for index, policy in enumerate(policies) if policy.number is None}
    points = [
        (index, point)
        for point in (*summary.points, *summary.baselines)
        if (index := place.get(point.number) if point.number is not None else named.get(point.origin)) is not None
    ]
    levels = sorted({point.level for _, point in points})
    origins = list(dict.fromkeys(policy.origin for policy in policies))
    pairs = [pair for pair, _ in Counter(pair for policy in policies for pair in policy.bits or ()).most_common()]
    return {
        "name": summary.name,
        "axis": summary.axis,
        "quality": summary.ranked_by,
        "batch": summary.batch,
        "metrics": _metrics(summary, policies),
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
            "cost": {
                field: [_short(policy.cost.get(field)) for policy in policies] for field in _fields(summary, policies)
            },
        },
        "scores": {
            "policy": [index for index, _ in points],
            "level": [levels.index(point.level) for _, point in points],
            "top1": [_short(point.top1) for _, point in points],
            "loss": [_short(point.loss) for _, point in points],
            "kl": [None if point.kl is None else _short(max(point.kl, _LEAST_KL)) for _, point in points],
        },
        "front": [place[point.number] for point in summary.front if point.number in place],
        "chosen": None if summary.chosen is None else place.get(summary.chosen),
        "float": {"cost": details.float_cost, "top1": details.float_top1, "loss": details.float_loss, "kl": None},
        "costs": _costs(details.table, details.names, pairs),
        "heat_maps": [vars(heat_map) for heat_map in details.heat_maps],
        "bench": _bench(details.bench),
    }


def embedded(content: Mapping[str, Any]) -> str:
    """Returns JSON for a `<script type="application/json">`: nothing in it can end the element or open a comment."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _level(level: Level) -> str:
    return "floating point" if level.fidelity == "float" else summary_text.training(level.steps)


def _fields(summary: Summary, policies: Iterable[Scored]) -> list[str]:
    found = {field for policy in policies for field, value in policy.cost.items() if value is not None}
    order = dict.fromkeys((summary.axis, *(metric.field for metric in METRICS.values())))
    return [field for field in order if field in found]


def _metrics(summary: Summary, policies: Iterable[Scored]) -> list[dict[str, Any]]:
    names = {metric.field: metric.name for metric in METRICS.values()}
    return [
        {"field": field, "name": names[field], "limit": summary.limits.get(field)}
        for field in _fields(summary, policies)
    ]


def _word(bits: Sequence[LayerBits] | None, letters: Mapping[LayerBits, str]) -> str | None:
    return None if bits is None else "".join(letters[pair] for pair in bits)


def _costs(table: CostTable | None, layers: tuple[str, ...], pairs: Sequence[LayerBits]) -> dict[str, Any] | None:
    """Returns what each layer costs at each pair of widths that some policy has, `[layer][pair]`."""
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
    return {
        "by": {field: cells(table.metrics[field]) for field in _ADDED if field in table.metrics},
        "rest": {field: _short(value) for field, value in table.rest.items()},
        "memory_bound": None if bound is None else cells(bound),
        "origin": table.origin,
    }


def _bench(bench: Bench | None) -> dict[str, Any] | None:
    return None if bench is None else {**vars(bench), "networks": dict(bench.networks)}


def _short(value: float | None) -> float | int | None:
    """Rounds to digits that a picture shows; what is not a number is null."""
    if value is None or not isfinite(value):
        return None
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded
