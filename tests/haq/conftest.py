"""A realistic run folder, built without searching."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from haq.config import SearchConfig
from haq.hwmodels import CostTable
from haq.layers import LayerSpec
from haq.policy import WIDTHS, BitPolicy, LayerBits
from haq.runs import Baseline, BaselineName, Best, Cost, RunFolder, Trial
from haq.scores import Score

MakeRun = Callable[..., RunFolder]
CHUNK, LONGEST = 12, 24


def _names(count: int) -> list[str]:
    blocks = [f"stages.{i // 6}.{i % 6 // 2}.conv{i % 2 + 1}" for i in range(count - 2)]
    return ["stem", *blocks, "head"]


def _layer(index: int, name: str, count: int) -> LayerSpec:
    if index == count - 1:
        return LayerSpec(
            name, "linear", 64, 10, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1), (1, 1), macs=640, params=640, biases=10
        )
    channels, size = 16 * 2 ** (3 * index // count), 32 // 2 ** (3 * index // count)
    params = channels * channels * 9
    return LayerSpec(
        name, "conv", channels, channels, (3, 3), (1, 1), (1, 1), (1, 1), 1, (size, size), (size, size),
        macs=params * size * size, params=params, biases=0,
    )  # fmt: skip


class Toy:
    """Prices and scores policies by simple rules, so that all numbers of a run agree with each other."""

    def __init__(self, layers: Sequence[LayerSpec], seed: int) -> None:
        self.layers, self.names = layers, [layer.name for layer in layers]
        self.pinned = {self.names[0]: LayerBits(8, 8), self.names[-1]: LayerBits(8, 8)}
        self.rng = np.random.default_rng(seed)
        self.sensitivity = self.rng.lognormal(sigma=1.2, size=(len(layers), 2))
        work = np.array([layer.macs for layer in layers])[:, None, None] * np.outer(WIDTHS, WIDTHS)
        size = np.array([layer.params for layer in layers])[:, None, None] * np.outer(WIDTHS, np.ones(len(WIDTHS))) / 8
        metrics = {"latency_ms": 2e-9 * work, "energy_mj": 7e-10 * work, "size_bytes": size, "bops": work}
        self.table = CostTable("edge", 16, tuple(self.names), WIDTHS, WIDTHS, metrics, "modelled", "toy")

    def cost(self, policy: BitPolicy) -> dict[str, float]:
        return self.table.cost(policy)

    def score(self, policy: BitPolicy, steps: int) -> Score:
        widths = np.array([(bits.w_bits, bits.a_bits) for bits in policy.values()])
        noise = (self.sensitivity * 2.0**-widths).sum() / len(self.names)
        error = 0.05 + 0.5 * noise / (1 + steps / 8) + abs(self.rng.normal(0, 0.003))
        return Score(round(max(0.1, 1 - error) * 500) / 500, 3 * error, 500, 0.5, "qat" if steps else "ptq", steps)

    def propose(self, skill: float, budget: float) -> BitPolicy:
        """Gives sensitive layers more bits, the more so with skill, then lowers layers until the budget holds."""
        centre = self.rng.uniform(2.5, 5) + skill * np.log2(self.sensitivity)
        drawn = np.clip(np.rint(self.rng.normal(centre, 1.0)), 2, 8).astype(int).tolist()
        layers = {n: LayerBits(w, a) for n, (w, a) in zip(self.names, drawn, strict=True)} | self.pinned
        latencies = self.table.layer_costs(BitPolicy(layers), "latency_ms").copy()
        while latencies.sum() > budget:
            row = int(self.rng.integers(1, len(self.names) - 1))
            w, a = layers[self.names[row]].w_bits or 2, layers[self.names[row]].a_bits or 2
            layers[self.names[row]] = lower = LayerBits(max(2, w - 1), max(2, a - 1))
            latencies[row] = self.table.layer_cost(self.names[row], lower, "latency_ms")
        return BitPolicy(layers)


def _trial(toy: Toy, number: int, budget: float) -> Trial:
    origin = "random" if number <= 8 else "agent"
    policy = toy.propose(0.0 if number <= 8 else min(0.6, number / 60), budget)
    rungs = (0,) if number % 4 == 1 else (0, CHUNK) if number % 7 == 2 else (0, CHUNK, LONGEST)
    scores = [toy.score(policy, steps) for steps in rungs]
    error, objective = None, scores[-1].top1
    if number % 19 == 0:
        scores, error, objective = [], "OutOfMemoryError: no memory left", 0.0
    elif number == 23:
        scores[1:] = [replace(scores[0], loss=float("nan"), fidelity="qat", steps=CHUNK)]
        error, objective = "the loss became nan", 0.0
    return Trial(number, policy, origin, toy.cost(policy), tuple(scores), objective, 6.3 * number, error)


def _rivals(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.error is None and trial.scores[-1].steps == LONGEST]


def _front(trials: Sequence[Trial]) -> list[Trial]:
    """The definition, spelled out; latency and energy are the same up to a factor here."""

    def beats(one: Trial, other: Trial) -> bool:
        pairs = [
            (-one.objective, -other.objective),
            *((one.cost[field] or 0.0, other.cost[field] or 0.0) for field in ("latency_ms", "size_bytes")),
        ]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    rivals = _rivals(trials)
    return [trial for trial in rivals if not any(beats(other, trial) for other in rivals)]


def _best(toy: Toy, trials: Sequence[Trial], baselines: Mapping[BaselineName, Baseline | None], limit: float) -> Best:
    winner = max(_rivals(trials), key=lambda trial: trial.objective)
    tuned = toy.score(winner.policy, 200)
    tested = {"float": 0.948, "uniform8": 0.944, "uniform_same_budget": 0.913}
    return Best(
        policy=winner.policy,
        top1=tuned.top1,
        loss=tuned.loss,
        test_top1=0.931,
        cost=_reported(winner.cost),
        constraints={"latency_ms": limit},
        baselines={
            name: {"test_top1": tested[name], "cost": _reported(baseline.cost)} if baseline else None
            for name, baseline in baselines.items()
        },
    )


def _reported(cost: Cost) -> dict[str, float | None]:
    return {field: cost[field] for field in ("latency_ms", "energy_mj", "size_bytes")}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Returns a function that writes a run folder of a search under a latency budget."""

    def make(
        name: str = "digits-edge",
        *,
        layers: int = 24,
        trials: int = 60,
        finished: bool = True,
        names: Sequence[str] = (),
        seed: int = 0,
    ) -> RunFolder:
        run = RunFolder(tmp_path / name)
        every = [*names, *_names(layers)[len(names) :]]
        toy = Toy([_layer(index, layer, layers) for index, layer in enumerate(every)], seed)
        uniform = {bits: BitPolicy.uniform(toy.names, bits, toy.pinned) for bits in (4, 8)}
        limit = 1.02 * toy.cost(uniform[4])["latency_ms"]
        float_size = 4.0 * sum(layer.params for layer in toy.layers)
        baselines: dict[BaselineName, Baseline | None] = {
            "float": Baseline(
                None,
                Score(0.952, 0.16, 500, 0.2, "float"),
                {"latency_ms": None, "energy_mj": None, "size_bytes": float_size},
            ),
            "uniform8": Baseline(8, toy.score(uniform[8], 0), toy.cost(uniform[8]), 8),
            "uniform_same_budget": Baseline(4, toy.score(uniform[4], 0), toy.cost(uniform[4]), 4),
        }
        done = [_trial(toy, number, limit) for number in range(1, trials + 1)]

        run.write_config(SearchConfig((f"latency={limit:.6f}ms",), batch=16, trials=60, workers=2), {"haq": "0.1.0"})
        run.write_layers(list(toy.layers))
        toy.table.save(run.costs)
        run.write_baselines(baselines)
        for trial in done:
            run.append_trial(trial)
        if finished:
            run.write_front(_front(done))
            run.write_best(_best(toy, done, baselines, limit))
        return run

    return make
