"""What other commands leave in a run folder, for the tests of reports."""

from __future__ import annotations

import json
from typing import Any

from haq.runs import RunFolder

__all__ = ["add_bench", "add_sensitivity"]


def add_sensitivity(run: RunFolder, measures: tuple[str, ...] = ("kl", "sqnr")) -> None:
    names = [layer.name for layer in run.read_layers()][1:-1]
    rows: dict[str, list[list[float | None]]] = {
        "kl": [[(1 + row) * 10.0**-width for width in (2, 4, 8)] for row in range(len(names))],
        "sqnr": [[3.0 * width, 6.0 * width, None] for width in (2, 4, 8)] * len(names),
    }
    content: dict[str, Any] = {
        name: {
            "measure": name,
            "layers": names,
            "widths": [2, 4, 8],
            "weights": rows[name][: len(names)],
            "activations": rows[name][: len(names)],
        }
        for name in measures
    }
    run.sensitivity.write_text(json.dumps({"version": 1, "key": {}, "measures": content}), encoding="utf-8")


def add_bench(run: RunFolder) -> None:
    names = [layer.name for layer in run.read_layers()]
    predicted = [0.01 * (1 + row) for row in range(len(names))]
    content = {
        "layers": names,
        "predicted": predicted,
        "measured": [1.1 * latency for latency in predicted],
        "predicted_rest": 0.1,
        "measured_rest": 0.2,
        "total": 4.0,
        "spread": 0.02,
        "float32": 8.0,
        "int8": None,
        "kernels": "avx2",
        "predicted_total": 3.0,
        "top1": {},
        "machine": {"device": "a processor"},
    }
    run.bench.write_text(json.dumps(content), encoding="utf-8")
