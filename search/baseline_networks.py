"""The networks that a search is compared with: floating point, uniform 8 bits, and the best uniform widths that fit."""

from __future__ import annotations

from typing import Any

from haq.hwmodels import size_bytes
from haq.policy import BitPolicy
from haq.runs import Baseline
from haq.scores import Score
from haq.search.agents.baselines import uniform_policies
from haq.search.problem import Problem
from haq.search.workload import Workload
from haq.threads import cores

__all__ = ["references", "uniform_rivals"]


def uniform_rivals(problem: Problem, workload: Workload) -> list[tuple[BitPolicy, Baseline]]:
    """Returns the uniform policies that fit the budget, the best after calibration first.

    Weights and activations may have different widths. A pair that another fitting pair is at least as wide as in both
    is left out.
    """
    free = next(layer.name for layer in problem.layers if layer.name not in problem.budget.pinned)
    fitting = {policy[free]: policy for policy in uniform_policies(problem.budget)}
    widest = [
        policy
        for pair, policy in fitting.items()
        if not any(
            other != pair and (other.w_bits or 0) >= (pair.w_bits or 0) and (other.a_bits or 0) >= (pair.a_bits or 0)
            for other in fitting
        )
    ]
    rivals = [
        (policy, _scored(policy, policy[free].w_bits, policy[free].a_bits, problem, workload)) for policy in widest
    ]
    return sorted(rivals, key=lambda rival: -rival[1].score.objective(workload.rank_by))


def references(
    problem: Problem, workload: Workload, float_score: Score, rivals: list[tuple[BitPolicy, Baseline]]
) -> dict[Any, Baseline | None]:
    """Scores the networks to compare with, on the validation images and without fine-tuning."""
    uniform8 = problem.budget.uniform(8)
    pair = problem.budget.uniform_pair(8)
    float_policy = BitPolicy.uniform([layer.name for layer in problem.layers], None)
    float_size = sum(size_bytes(layer, float_policy[layer.name]) for layer in problem.layers)
    float_cost = {"latency_ms": None, "energy_mj": None, "size_bytes": float_size}
    return {
        "float": Baseline(None, float_score, float_cost),
        "uniform8": _scored(uniform8, pair.w_bits, pair.a_bits, problem, workload),
        "uniform_same_budget": rivals[0][1] if rivals else None,
    }


def _scored(
    policy: BitPolicy, w_bits: int | None, a_bits: int | None, problem: Problem, workload: Workload
) -> Baseline:
    score = workload.score(workload.quantized(policy), "ptq", threads=cores())
    return Baseline(w_bits, score, problem.table.cost(policy), a_bits, policy)
