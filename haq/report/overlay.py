"""Several runs on one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from haq.metrics import format_cost, metric_of
from haq.report import summary_text
from haq.report.details import Details, detail
from haq.report.from_run import summarize
from haq.report.html import page, table
from haq.report.payload import looks, payload
from haq.report.summary import Summary
from haq.runs import RunFolder

__all__ = ["Compared", "compared", "comparison", "render_overlay"]

_SHARED = ("axis", "quality", "batch", "metrics", "levels", "policies", "scores", "front", "chosen", "float")


@dataclass(frozen=True)
class Compared:
    """One of the runs that are compared.

    Attributes:
        name: Name of its folder; runs of the same name are numbered.
        agent: Name of the agent that searched.
        summary: Its results.
        details: Its policies.
    """

    name: str
    agent: str
    summary: Summary
    details: Details


def compared(runs: Iterable[RunFolder]) -> tuple[Compared, ...]:
    """Reads run folders, in the order given.

    Raises:
        ConfigError: A search stopped before its first trial, or a file is damaged.
    """
    read = [(run.read_config().agent, summarize(run), detail(run)) for run in runs]
    often = Counter(summary.name for _, summary, _ in read)
    seen: Counter[str] = Counter()
    found = []
    for agent, summary, details in read:
        seen[summary.name] += 1
        name = f"{summary.name} ({seen[summary.name]})" if often[summary.name] > 1 else summary.name
        found.append(Compared(name, agent, summary, details))
    return tuple(found)


def comparison(runs: Sequence[Compared]) -> summary_text.Table:
    """Returns a row for each run: the agent, the budget, and the score and costs of the result."""
    found = {field for run in runs for field in run.summary.fields}
    axes = [run.summary.axis for run in runs]
    fields = [*dict.fromkeys((*axes, *(field for field in ("latency_ms", "size_bytes") if field in found)))]
    rows = []
    for run in runs:
        ours = next((network for network in run.summary.networks if network.key == "ours"), None)
        costs = (format_cost(field, ours.cost.get(field) if ours else None) for field in fields)
        trials = f"{run.summary.trials_done} of {run.summary.trials_asked}"
        budget = ", ".join(
            f"{metric_of(field).name} ≤ {format_cost(field, limit)}" for field, limit in run.summary.limits.items()
        )
        top1 = summary_text.percent(ours.test_top1 if ours else None)
        rows.append((run.name, run.agent, budget or "–", trials, top1, *costs))
    tested = [run.summary.networks[-1].test_top1 for run in runs]
    best = max((top1 for top1 in tested if top1 is not None), default=None)
    notes = [
        "Test top-1: of each run's mixed-precision network, on the test samples; a dash where a search has not ended."
    ]
    if len({(run.summary.model, run.summary.data) for run in runs}) > 1:
        notes.append("These runs are of different models or data: their scores are not comparable.")
    if len({(run.summary.hardware, run.summary.batch) for run in runs}) > 1:
        notes.append("Their costs are of different hardware or batch sizes.")
    return summary_text.Table(
        header=("run", "agent", "budget", "trials", "test top-1", *(metric_of(field).name for field in fields)),
        rows=tuple(rows),
        notes=tuple(notes),
        marked=tested.index(best) if best is not None and len(runs) > 1 else None,
    )


def render_overlay(runs: Sequence[Compared]) -> str:
    """Returns a page that draws the scatter plots of all runs over each other and compares the runs."""
    content = comparison(runs)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in content.notes)
    commands = "".join(
        f'<p class="note">{escape(run.name)}</p><pre tabindex="0">{escape(run.details.command)}</pre>' for run in runs
    )
    body = (
        f'<p class="run">haq</p>\n<h1>{len(runs)} searches compared</h1>\n'
        f'<div class="runs">{table(content)}</div>{notes}\n'
        '<section><h2>Accuracy and cost</h2><div class="controls" id="controls"></div>'
        '<div class="chart"><div id="scatter" role="figure" aria-label="Policies of all runs: accuracy against cost">'
        "</div></div>"
        '<p class="note">Lines join the policies of a run that no cheaper one beats. Stars are chosen policies.'
        "</p>"
        f"</section>\n<section><h2>Repeat them</h2>{commands}</section>"
    )
    drawn = [_drawn(run) for run in runs]
    fields = [metric["field"] for run in drawn for metric in run["metrics"]]
    return page(", ".join(run.name for run in runs), body, {"runs": drawn, "looks": looks(fields)}, "overlay.js")


def _drawn(run: Compared) -> dict[str, Any]:
    """Returns what the page draws of a run; the widths of layers are on the page of that run."""
    content = payload(run.summary, run.details)
    kept = {key: content[key] for key in _SHARED}
    kept["policies"] = {**content["policies"], "bits": None}
    origins: list[str] = content["origins"]
    return {"name": run.name, "agent": run.agent, "origins": origins, **kept}
