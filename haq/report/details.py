"""The data of the page beyond the `Summary`: every policy, the costs of layers, measurements, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from haq.config import SearchConfig
from haq.errors import ConfigError, HardwareError, printable
from haq.hwmodels import CostTable
from haq.policy import BitPolicy, LayerBits
from haq.report.repeat import command
from haq.runs import Baseline, Cost, RunFolder, Trial

__all__ = ["Bench", "Details", "HeatMap", "Scored", "detail"]

T = TypeVar("T")


@dataclass(frozen=True)
class Scored:
    """A policy that was scored.

    Attributes:
        number: Number of the trial; `None` for a baseline.
        origin: Who proposed it.
        bits: Widths of each layer; `None` if the run folder does not hold them.
        elapsed_s: Seconds from the start of the search to the trial's end.
        cost: Metric field → cost, from the cost table.
    """

    number: int | None
    origin: str
    bits: tuple[LayerBits, ...] | None
    elapsed_s: float | None
    cost: Cost


@dataclass(frozen=True)
class HeatMap:
    """The loss of each layer alone at each width, by one measure. Rows are layers, columns widths; `None` is infinite.

    Attributes:
        measure: One of `haq.search.sensitivity.MEASURES`.
        layers: Names of the layers.
        widths: Widths, ascending.
        weights: Losses by quantizing weights.
        activations: Losses by quantizing activations; `None` if these stay in floating point.
    """

    measure: str
    layers: tuple[str, ...]
    widths: tuple[int, ...]
    weights: tuple[tuple[float | None, ...], ...]
    activations: tuple[tuple[float | None, ...], ...] | None


@dataclass(frozen=True)
class Bench:
    """Latencies that `haq bench` predicted and measured, in milliseconds; see `haq.hwmodels.measuring.bench.Bench`.

    Attributes:
        layers: Names of the layers.
        predicted: Predicted latency of each layer.
        measured: Measured latency of each layer.
        predicted_total: Predicted latency of the whole network.
        total: Measured latency of the whole network.
        spread: Distance between the quartiles of the total, as a share of it.
        networks: Name → measured latency of this network, and of PyTorch's networks if they were measured.
        machine: The machine of the measurement.
    """

    layers: tuple[str, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    predicted_total: float
    total: float
    spread: float
    networks: Mapping[str, float]
    machine: str


@dataclass(frozen=True)
class Details:
    """All that a page needs beside the `Summary`. Text is printable, as there.

    Attributes:
        layers: Names of the layers, in the order of the bits of every policy.
        policies: Trials with a score, in their order, then the uniform baselines.
        float_cost: Cost of the float network.
        float_top1: Top-1 of the float network on the validation samples.
        float_loss: Its loss on them.
        table: Costs of the layers, in its own order; `None` if the run has no table that fits.
        names: Layers as the table knows them, in the order of `layers`.
        heat_maps: From `RUN/sensitivity.json`; empty without one.
        bench: From `RUN/bench.json`; `None` without one.
        command: Command line that repeats the search.
        environment: Package → version, and the like, of the search.
    """

    layers: tuple[str, ...]
    policies: tuple[Scored, ...]
    float_cost: Cost
    float_top1: float | None
    float_loss: float | None
    table: CostTable | None
    names: tuple[str, ...]
    heat_maps: tuple[HeatMap, ...]
    bench: Bench | None
    command: str
    environment: Mapping[str, str]


def detail(run: RunFolder) -> Details:
    """Reads a run folder, whether its search has ended or not.

    Raises:
        ConfigError: The search stopped before its first trial, or a file is damaged.
    """
    config, baselines = run.read_config(), run.read_baselines()
    trials = [trial for trial in run.read_trials() if trial.scores and trial.error is None]
    names = tuple(trials[0].policy) if trials else ()
    table = _table(run, names)
    uniform = [baselines.get("uniform8"), baselines.get("uniform_same_budget")]
    full = baselines.get("float")
    return Details(
        layers=tuple(map(printable, names)),
        policies=(*map(_scored, trials), *_uniform(uniform, config, names, table)),
        float_cost=full.cost if full else {},
        float_top1=full.score.top1 if full else None,
        float_loss=full.score.loss if full and full.score.finite else None,
        table=table,
        names=names,
        heat_maps=_read(run.sensitivity, _heat_maps) or (),
        bench=_read(run.bench, _bench),
        command=printable(command(config)),
        environment={
            printable(str(key)): printable(str(value))
            for key, value in run.read_environment().items()
            if value is not None
        },
    )


def _scored(trial: Trial) -> Scored:
    return Scored(trial.number, printable(trial.origin), tuple(trial.policy.values()), trial.elapsed_s, trial.cost)


def _uniform(
    baselines: Sequence[Baseline | None], config: SearchConfig, names: Sequence[str], table: CostTable | None
) -> Iterator[Scored]:
    """Returns the uniform networks, with the widths that the run folder holds."""
    for baseline in {baseline.widths: baseline for baseline in baselines if baseline and baseline.bits}.values():
        policy = baseline.policy or _guessed(baseline, config, names, table)
        bits = tuple(policy[name] for name in names) if policy and set(policy) == set(names) else None
        yield Scored(None, f"uniform {baseline.widths}-bit", bits, None, baseline.cost)


def _guessed(
    baseline: Baseline, config: SearchConfig, names: Sequence[str], table: CostTable | None
) -> BitPolicy | None:
    """Finds the widths in an older run folder, which holds one pair and a cost: the ends may have been pinned."""
    if not names or table is None:
        return None
    inputs = None if config.weights_only else baseline.a_bits
    pinned = {names[0], names[-1]} if config.pin_ends and len(names) > 2 else set()
    ends, others = LayerBits(8, None if config.weights_only else 8), LayerBits(baseline.bits, inputs)
    policy = BitPolicy({name: ends if name in pinned else others for name in names}, config.scheme)
    return policy if _priced(table, policy, baseline.cost) else None


def _priced(table: CostTable, policy: BitPolicy, cost: Cost) -> bool:
    """Whether the policy has exactly this cost, and so is the one that was scored."""
    try:
        found = table.cost(policy)
    except HardwareError:
        return False
    known = {field: value for field, value in cost.items() if value is not None and field in found}
    return bool(known) and all(abs(found[field] - value) <= 1e-6 * abs(value) for field, value in known.items())


def _table(run: RunFolder, names: tuple[str, ...]) -> CostTable | None:
    if not run.costs.is_file():
        return None
    try:
        table = CostTable.load(run.costs)
    except HardwareError:
        return None
    return table if set(table.layers) == set(names) else None


def _read(path: Path, parse: Callable[[Any], T]) -> T | None:
    """Reads an optional file of a run folder.

    Raises:
        ConfigError: The file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"cannot read {path}: {error!r}; remove it, or make it again") from None


def _heat_maps(content: Any) -> tuple[HeatMap, ...]:
    return tuple(
        HeatMap(
            printable(str(name)),
            tuple(printable(str(layer)) for layer in values["layers"]),
            tuple(int(width) for width in values["widths"]),
            _rows(values["weights"]),
            None if values["activations"] is None else _rows(values["activations"]),
        )
        for name, values in content["measures"].items()
    )


def _rows(rows: Any) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(None if value is None else float(value) for value in row) for row in rows)


def _bench(content: Any) -> Bench:
    latencies = {
        "float32 (PyTorch)": content["float32"],
        "int8 (PyTorch)": content["int8"],
        "this network": content["total"],
    }
    return Bench(
        layers=tuple(printable(str(layer)) for layer in content["layers"]),
        predicted=tuple(map(float, content["predicted"])),
        measured=tuple(map(float, content["measured"])),
        predicted_total=float(content["predicted_total"]),
        total=float(content["total"]),
        spread=float(content["spread"]),
        networks={name: float(latency) for name, latency in latencies.items() if latency is not None},
        machine=printable(str(content["machine"]["device"])),
    )
