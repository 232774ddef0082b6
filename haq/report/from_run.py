"""Reads a run folder into a `Summary`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from haq.config import SearchConfig
from haq.constraints import Constraint
from haq.errors import HardwareError, printable
from haq.hwmodels import CostTable
from haq.metrics import METRICS
from haq.policy import BitPolicy, Width
from haq.report.summary import LayerWidths, Level, Network, Point, Summary
from haq.runs import Baseline, BaselineName, Best, RunFolder, Trial, ranked_by
from haq.runs.archive import absolute_limits, best_of, cost_fields, hypervolume, pareto_front, within
from haq.scores import Score

__all__ = ["summarize"]

Baselines = Mapping[BaselineName, Baseline | None]


def summarize(run: RunFolder) -> Summary:
    """Reads a run folder, whether its search has ended or not.

    Raises:
        ConfigError: The search stopped before its first trial, or a file is damaged.
    """
    config, baselines, trials = run.read_config(), run.read_baselines(), run.read_trials()
    best = run.read_best() if run.finished else None  # that of an interrupted search may be older than its last trials
    limits = dict(best.constraints) if best else absolute_limits(config, baselines.get("uniform8"))

    failed = [trial for trial in trials if trial.error is not None or not trial.scores]
    scored = [trial for trial in trials if trial.error is None and trial.scores]
    asked = [METRICS[name].field for name in config.metrics]
    known = [trial.cost for trial in scored] or [baseline.cost for baseline in baselines.values() if baseline]
    fields = cost_fields(known, asked)
    chosen = _trial_of(best.policy, scored) if best else best_of(within(scored, limits), fields)
    policy = best.policy if best else chosen.policy if chosen else None
    same = baselines.get("uniform_same_budget")

    return Summary(
        name=printable(run.path.resolve().name),
        model=printable(config.model),
        data=printable(config.data),
        hardware=printable(config.hardware),
        scheme=printable(config.scheme) + (", weights only" if config.weights_only else ""),
        batch=config.batch or 1,
        constraints=tuple(_constraint_text(constraint, limits) for constraint in config.parsed_constraints()),
        limits=limits,
        axis="latency_ms" if "latency" in config.metrics else asked[0],
        fields=fields,
        trials_asked=config.trials,
        trials_done=len(trials),
        failures=tuple(Counter(_reason(trial) for trial in failed).most_common()),
        policies_scored=len({trial.policy for trial in scored}),
        elapsed_s=max((trial.elapsed_s for trial in trials), default=0.0),
        ranked_by=ranked_by(scored) or "top1",
        finished=best is not None,
        finetune_steps=config.finetune_steps,
        epochs=best.epochs if best else 0,
        networks=tuple(_networks(baselines, best, chosen)),
        uniform_bits=same.widths if same else None,
        chosen=chosen.number if chosen else None,
        tuned_val_top1=best.top1 if best else None,
        points=tuple(_points(scored)),
        baselines=tuple(_baseline_points(baselines)),
        front=tuple(_point(trial, trial.scores[-1]) for trial in pareto_front(scored, fields)),
        hypervolume=_hypervolume(scored, config, baselines),
        layers=_layers(run, policy) if policy else (),
        rest=run.read_rest(),
    )


def _constraint_text(constraint: Constraint, limits: Mapping[str, float]) -> str:
    limit = limits.get(constraint.field)
    if not constraint.relative or limit is None:
        return str(constraint)
    return f"{Constraint(constraint.metric, limit)} ({constraint.limit:.4g} of uniform 8-bit)"


def _hypervolume(
    scored: Sequence[Trial], config: SearchConfig, baselines: Baselines
) -> tuple[float, tuple[str, ...]] | None:
    """Returns the hypervolume of the front in the metrics asked for, in units of the uniform 8-bit network's costs."""
    uniform8 = baselines.get("uniform8")
    fields = [METRICS[name].field for name in config.metrics]
    costs = {field: uniform8.cost.get(field) if uniform8 else None for field in fields}
    reference = {field: cost for field, cost in costs.items() if cost}
    if not scored or len(reference) < len(fields):
        return None
    return hypervolume(scored, reference), config.metrics


def _reason(trial: Trial) -> str:
    return printable(((trial.error or "").strip() or "no score").splitlines()[0])


def _trial_of(policy: BitPolicy, scored: Sequence[Trial]) -> Trial | None:
    same = (trial for trial in scored if trial.policy == policy)
    return max(same, key=lambda trial: Level.of(trial.scores[-1]), default=None)


def _networks(baselines: Baselines, best: Best | None, chosen: Trial | None) -> Iterator[Network]:
    tested = best.baselines if best else {}
    names: dict[BaselineName, str] = {"float": "float", "uniform8": "uniform 8-bit"}
    same = baselines.get("uniform_same_budget")
    names["uniform_same_budget"] = (
        f"uniform {same.widths}-bit, same budget" if same else "uniform, same budget: none fits"
    )
    for key, name in names.items():
        before, after = baselines.get(key), tested.get(key)
        yield Network(
            key=key,
            name=name,
            test_top1=after["test_top1"] if after else None,
            val_top1=before.score.top1 if before else None,
            cost=after["cost"] if after else before.cost if before else {},
        )
    if (source := best or chosen) is not None:
        calibrated = [score.top1 for score in chosen.scores if score.fidelity == "ptq"] if chosen else []
        yield Network(
            key="ours",
            name="mixed precision (haq)" if best else "mixed precision, so far",
            test_top1=best.test_top1 if best else None,
            val_top1=calibrated[0] if calibrated else None,
            cost=source.cost,
        )


def _points(scored: Sequence[Trial]) -> Iterator[Point]:
    for trial in scored:
        last = trial.scores[-1]
        for score in trial.scores:
            if score is last or score.fidelity == "ptq":
                yield _point(trial, score)


def _point(trial: Trial, score: Score) -> Point:
    return Point(
        number=trial.number,
        origin=printable(trial.origin),
        mean_bits=(
            _mean(bits.w_bits for bits in trial.policy.values()),
            _mean(bits.a_bits for bits in trial.policy.values()),
        ),
        level=Level.of(score),
        top1=score.top1,
        loss=score.loss if score.finite else None,
        kl=score.kl if score.finite else None,
        cost=trial.cost,
    )


def _baseline_points(baselines: Baselines) -> Iterator[Point]:
    names: tuple[BaselineName, ...] = ("uniform8", "uniform_same_budget")
    seen = set()
    for baseline in (baselines.get(name) for name in names):
        if baseline is None or baseline.bits is None or baseline.widths in seen:
            continue
        seen.add(baseline.widths)
        score, bits = baseline.score, (float(baseline.bits), float(baseline.a_bits) if baseline.a_bits else None)
        loss, kl = (score.loss, score.kl) if score.finite else (None, None)
        yield Point(None, f"uniform {baseline.widths}-bit", bits, Level.of(score), score.top1, loss, kl, baseline.cost)


def _mean(widths: Iterator[Width]) -> float | None:
    quantized = [width for width in widths if width is not None]
    return fmean(quantized) if quantized else None


def _layers(run: RunFolder, policy: BitPolicy) -> tuple[LayerWidths, ...]:
    shares = _latency_shares(run, policy)
    return tuple(
        LayerWidths(printable(name), bits.w_bits, bits.a_bits, shares.get(name)) for name, bits in policy.items()
    )


def _latency_shares(run: RunFolder, policy: BitPolicy) -> dict[str, float]:
    """Returns each layer's share; empty if the run has no table, or one that does not price the policy."""
    if not run.costs.is_file():
        return {}
    try:
        table = CostTable.load(run.costs)
        latencies = table.layer_costs(policy, "latency_ms")
    except HardwareError:
        return {}
    total = table.cost(policy)["latency_ms"]
    return {name: float(latency) / total for name, latency in zip(table.layers, latencies, strict=True) if total > 0}
