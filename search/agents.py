"""Who proposes the policies of a search, and which ones are tried first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from haq.config import SearchConfig
from haq.envs import BitAllocationEnv, Budget
from haq.policy import BitPolicy
from haq.scores import Score
from haq.search.agent import DDPGAgent
from haq.search.guided import Guide
from haq.search.observer import Observer
from haq.search.problem import Problem
from haq.search.programme import Penalties, allocate
from haq.search.projection import Projection
from haq.search.searcher import Agent
from haq.search.sensitivity import Sensitivity, cached, fingerprint, measure_sensitivity
from haq.search.trainable import Workload
from haq.search.walker import Walker

__all__ = ["make_agent", "penalties_of"]

First = Sequence[tuple[str, BitPolicy]]

_WARMUP_SHARE, _WARMUP_MOST = 0.25, 20  # HAQ: 20 random episodes, of 600
_MEASURE = "kl"
_IMAGES = 512


def make_agent(
    config: SearchConfig, problem: Problem, workload: Workload, float_score: Score, path: Path, observer: Observer
) -> tuple[Agent, First]:
    """Returns the agent that the options ask for, and the policies to score before it is asked.

    Args:
        config: Options.
        problem: Layers, table and budget.
        workload: What every trial needs.
        float_score: Of the float network, on the validation images.
        path: Where sensitivities are kept, for a search that goes on.
        observer: Receives progress.
    """
    if config.agent == "haq":
        env = BitAllocationEnv(problem.layers, problem.budget, float_score=float_score, rank_by=workload.rank_by)
        warmup = min(int(_WARMUP_SHARE * config.trials), _WARMUP_MOST)
        return Walker(env, DDPGAgent(env, warmup, config.seed)), _by_hand(problem.budget)
    budget = problem.budget
    free = [layer.name for layer in problem.layers if layer.name not in budget.pinned]
    widths = sorted({w for pair in budget.pairs for w in (pair.w_bits, pair.a_bits) if w is not None})
    images = workload.train.subset(range(min(workload.train.fitting(_IMAGES), len(workload.train))))

    def measure() -> dict[str, Sensitivity]:
        return measure_sensitivity(
            workload.model, workload.calibration, images, free, widths, (_MEASURE,),
            lambda done, total: observer.progress("sensitivity", done, total), workers=config.workers,
        )  # fmt: skip

    key = {"network": fingerprint(workload.model), "data": config.data, "scheme": config.scheme, "seed": config.seed}
    key |= {"widths": widths, "layers": free}
    penalties = penalties_of(cached(path, key, measure)[_MEASURE], budget)
    programme = allocate(budget, penalties)
    first = [("programme", programme)] if programme is not None else []
    return Guide(Projection(budget, penalties), config.seed), [*first, *_by_hand(budget)]


def penalties_of(sensitivity: Sensitivity, budget: Budget) -> Penalties:
    """Adds up what weights and activations lose, for every candidate pair of the layers that were measured."""
    weights, inputs = sensitivity.weight_costs, sensitivity.activation_costs
    column = {width: index for index, width in enumerate(sensitivity.widths)}

    def penalty(row: int, w_bits: int | None, a_bits: int | None) -> float:
        lost = weights[row, column[w_bits]] if w_bits is not None else 0.0
        lost += inputs[row, column[a_bits]] if inputs is not None and a_bits is not None else 0.0
        return max(float(lost), 0.0)

    return {
        name: {pair: penalty(row, pair.w_bits, pair.a_bits) for pair in budget.pairs}
        for row, name in enumerate(sensitivity.layers)
    }


def _by_hand(budget: Budget) -> First:
    """What anyone would try: the best uniform policy, and the widest one, fitted to the budget in two ways."""
    uniform = budget.largest_uniform()
    first = [("uniform", budget.uniform(uniform))] if uniform else []
    decreased = budget.decrease(budget.uniform(budget.bits[-1]))
    return [*first, ("decreased", decreased), ("spent", budget.spend(decreased))]
