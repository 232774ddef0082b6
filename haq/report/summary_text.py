"""A `Summary` in words and table cells, the same for the terminal and the HTML page."""

from __future__ import annotations

from dataclasses import dataclass

from haq.errors import printable
from haq.metrics import METRICS, format_cost, metric_of
from haq.policy import Width
from haq.report.details import Bench
from haq.report.summary import Network, Point, Summary
from haq.scores import QUALITIES, RankBy

__all__ = [
    "Table",
    "benched",
    "comparison",
    "facts",
    "front",
    "layers",
    "left_over",
    "mean_bits",
    "percent",
    "progress",
    "training",
    "verdict",
    "width",
]

_BESIDE = ("latency_ms", "size_bytes")  # what the front shows beside the limited metrics


@dataclass(frozen=True)
class Table:
    """Cells ready to be shown.

    Attributes:
        header: Titles of the columns.
        rows: Cells.
        notes: Sentences that explain the numbers.
        marked: Index of the row of the chosen policy, if any.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    marked: int | None = None


def percent(fraction: float | None) -> str:
    """Formats a fraction.

    Examples:
        >>> percent(0.9312)
        '93.1 %'
    """
    return "–" if fraction is None else f"{fraction:.1%}".replace("%", " %")


def width(bits: Width) -> str:
    """Formats a width; `None` is floating point."""
    return "float" if bits is None else str(bits)


def verdict(summary: Summary) -> str:
    """Returns one sentence on whether the search was worth it."""
    tested = {network.key: network.test_top1 for network in summary.networks}
    ours, theirs = tested.get("ours"), tested.get("uniform_same_budget")
    if ours is None:
        if summary.chosen is None:
            return "The search stopped before any trial was scored."
        return f"The search has not ended; its best policy so far is that of trial {summary.chosen}, not yet tested."
    if summary.uniform_bits is None:
        return f"No uniform width fits the budget; the mixed-precision network reaches {percent(ours)} test top-1."
    uniform = f"the uniform {summary.uniform_bits}-bit network at equal budget"
    if theirs is None:
        return f"The mixed-precision network reaches {percent(ours)} test top-1; {uniform} was not tested."
    points = round(100 * (ours - theirs), 1)
    numbers = f"{percent(ours)} against {percent(theirs)} test top-1"
    unequal = (
        f", after {summary.epochs} epochs against {summary.finetune_steps} steps of fine-tuning"
        if summary.epochs
        else ""
    )
    numbers += unequal
    if points > 0:
        return f"Beats {uniform} by +{points:.1f} points ({numbers})."
    if points < 0:
        return f"The search did not beat {uniform}: {points:.1f} points ({numbers})."
    return f"The search did not beat {uniform}: both reach {percent(ours)} test top-1{unequal}."


def left_over(summary: Summary) -> str:
    """Returns what no layer covers, as a sentence; empty if that is nothing."""
    said = printable(summary.rest.said())
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def facts(summary: Summary) -> list[tuple[str, str]]:
    """Returns the facts of the search, as label and value."""
    trials = f"{summary.trials_done} of {summary.trials_asked}"
    if summary.failures:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in summary.failures)
        trials += f", {sum(count for _, count in summary.failures)} failed ({reasons})"
    return [
        ("model", summary.model),
        ("data", summary.data),
        ("hardware", f"{summary.hardware}, batch {summary.batch}"),
        ("scheme", summary.scheme),
        ("budget", ", ".join(summary.constraints)),
        ("trials", trials),
        ("policies", f"{summary.policies_scored} scored"),
        ("time", _duration(summary.elapsed_s)),
    ]


def comparison(summary: Summary) -> Table:
    """Returns the table of float, uniform and searched networks."""
    networks = summary.networks
    headlines = [metric.field for metric in METRICS.values() if metric.headline]
    fields = [
        field
        for field in dict.fromkeys((*headlines, *summary.limits))
        if any(network.cost.get(field) is not None for network in networks)
    ]

    def row(network: Network) -> tuple[str, ...]:
        costs = (format_cost(field, network.cost.get(field)) for field in fields)
        return (network.name, percent(network.test_top1), percent(network.val_top1), *costs)

    return Table(
        header=("network", "test top-1", "val. top-1", *(metric_of(field).name for field in fields)),
        rows=tuple(row(network) for network in networks),
        notes=(_about_test(summary), _about_validation(summary)),
        marked=next((i for i, network in enumerate(networks) if network.key == "ours"), None),
    )


def front(summary: Summary) -> Table:
    """Returns the table of the Pareto front."""
    beside = [field for field in _BESIDE if field in summary.fields]
    fields = list(dict.fromkeys((*beside, *summary.limits)))
    names = [metric_of(field).name for field in fields]
    second: RankBy = "kl" if summary.ranked_by == "kl" else "loss"
    name = "div." if second == "kl" else "loss"

    def row(point: Point) -> tuple[str, ...]:
        costs = (format_cost(field, point.cost.get(field)) for field in fields)
        value = point.quality(second)
        shown = "–" if value is None else f"{value:.3f}"
        return (str(point.number), percent(point.top1), shown, *costs, mean_bits(point), point.origin)

    return Table(
        header=("trial", "val. top-1", f"val. {name}", *names, "mean w / a", "from"),
        rows=tuple(row(point) for point in summary.front),
        notes=(_about_front(summary),),
        marked=next((i for i, point in enumerate(summary.front) if point.number == summary.chosen), None),
    )


def layers(summary: Summary) -> Table:
    """Returns the table of the best policy's layers."""
    shares = any(layer.latency_share is not None for layer in summary.layers)
    rows = (
        (str(number), layer.name, width(layer.w_bits), width(layer.a_bits), percent(layer.latency_share))
        for number, layer in enumerate(summary.layers, 1)
    )
    header = ("#", "layer", "w", "a", "latency")
    end = len(header) if shares else -1
    return Table(header[:end], tuple(row[:end] for row in rows), ("Of weights (w) and of input activations (a).",))


def progress(summary: Summary) -> str:
    """Returns a sentence on the best trial among those that were trained longest."""
    longest = max((point.level for point in summary.points), default=None)
    trials = [point for point in summary.points if point.level == longest and point.number is not None]
    if longest is None or not trials:
        return "No trial has been scored yet."
    sign = 1 if summary.ranked_by == "top1" else -1
    known = [point for point in trials if point.quality(summary.ranked_by) is not None]
    best = max(
        known or trials, key=lambda point: (sign * (point.quality(summary.ranked_by) or 0.0), -(point.number or 0))
    )
    value = best.quality(summary.ranked_by)
    score = percent(best.top1) if sign > 0 or value is None else f"{QUALITIES[summary.ranked_by]} {value:.3f}"
    return (
        f"{len(trials)} of {summary.trials_done} trials were {training(longest.steps)}; the best of them, {score}, "
        f"is trial {best.number}."
    )


def benched(bench: Bench) -> str:
    """Returns sentences on the predicted and the measured latency, and on those of other networks."""
    error = bench.predicted_total / bench.total - 1
    others = ", ".join(
        f"{name} {format_cost('latency_ms', latency)}" for name, latency in bench.networks.items() if "PyTorch" in name
    )
    return (
        f"The whole network takes {format_cost('latency_ms', bench.total)}, predicted were "
        f"{format_cost('latency_ms', bench.predicted_total)} ({error:+.1%}); quartiles are {bench.spread:.1%} apart"
        f"{f'. Beside it: {others}' if others else ''}. Measured on {bench.machine}."
    ).replace("%", " %")


def training(steps: int) -> str:
    """Returns how far a policy was trained."""
    return f"fine-tuned for {steps} steps" if steps else "calibrated only"


def mean_bits(point: Point) -> str:
    """Returns the mean widths of weights and activations."""
    return " / ".join("–" if bits is None else f"{bits:.1f}" for bits in point.mean_bits)


def _about_test(summary: Summary) -> str:
    if not summary.finished:
        return "Test top-1: the test samples have not been used yet."
    if summary.epochs:
        others = f", the uniform one before it for {summary.finetune_steps} steps" if summary.uniform_bits else ""
        return (
            f"Test top-1: on the test samples, by which nothing was chosen. The last network was trained on for "
            f"{summary.epochs} epochs{others}, the others not at all."
        )
    used = "Test top-1: on the test samples, which were used once, at the end."
    if not summary.finetune_steps:
        return f"{used} Nothing was fine-tuned."
    tuned = "two networks were" if summary.uniform_bits is not None else "network was"
    return (
        f"{used} The last {tuned} fine-tuned for {summary.finetune_steps} steps before it, except where validation was "
        "better without; the others not at all."
    )


def _about_validation(summary: Summary) -> str:
    note = "Val. top-1: on the validation samples, before any fine-tuning, in every row."
    if summary.tuned_val_top1 is None:
        return note
    return f"{note} At the end, the last network reaches {percent(summary.tuned_val_top1)} on them."


def _about_front(summary: Summary) -> str:
    if not summary.front:
        return "No trial has been scored yet."
    quality = QUALITIES[summary.ranked_by]
    note = (
        f"Of the policies {training(summary.front[0].level.steps)}, those that no other beats in all of validation "
        f"{quality} and every cost at once."
    )
    if summary.ranked_by == "kl":
        note += " Divergence (div.) is that from the float network, in nats, on mixed validation samples."
    if summary.hypervolume is None:
        return note
    volume, metrics = summary.hypervolume
    return f"{note} Hypervolume of {quality} and {' and '.join(metrics)}, against uniform 8-bit: {volume:.3f}."


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
