"""The networks that a search is compared with: floating point, uniform 8 bits, and the best uniform widths that fit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from haq.hwmodels import size_bytes
from haq.policy import BitPolicy, LayerBits
from haq.progress import Observer, Silent
from haq.runs import Baseline, BaselineName
from haq.scores import Score
from haq.search.agents.baselines import uniform_policies
from haq.search.problem import Problem
from haq.search.workload import Workload
from haq.threads import cores

__all__ = ["Baselines", "score_baselines"]


@dataclass(frozen=True)
class Baselines:
    """Networks to compare with, scored on the validation images after calibration.

    Attributes:
        float: The float network.
        uniform8: All free layers at 8 bits.
        rivals: Uniform networks inside the budget, best first. Weights and activations may have different widths;
            a pair is left out if another pair that fits is at least as wide in both.
    """

    float: Baseline
    uniform8: Baseline
    rivals: tuple[Baseline, ...]

    def named(self, rival: Baseline | None = None) -> dict[BaselineName, Baseline | None]:
        """Returns the baselines by the names used in run folders.

        Args:
            rival: The uniform network inside the budget; by default the best after calibration.
        """
        best = self.rivals[0] if self.rivals else None
        return {"float": self.float, "uniform8": self.uniform8, "uniform_same_budget": rival or best}


def score_baselines(
    problem: Problem, workload: Workload, float_score: Score, observer: Observer | None = None
) -> Baselines:
    """Scores the networks to compare with.

    Args:
        problem: Layers, prices and budget.
        workload: Calibration and validation images.
        float_score: Score of the float network.
        observer: Receives progress.
    """
    observer, scored = observer or Silent(), []
    policies = [*_widest_uniform(problem).items(), (problem.budget.uniform_pair(8), problem.budget.uniform8)]
    for number, (pair, policy) in enumerate(policies):
        observer.progress("baselines", number, len(policies))
        scored.append(_scored(policy, pair, problem, workload))
    observer.progress("baselines", len(policies), len(policies))
    *rivals, uniform8 = scored
    rivals.sort(key=lambda rival: -rival.score.objective(workload.rank_by))
    layers = [layer.name for layer in problem.layers]
    float_policy = BitPolicy.uniform(layers, None)
    float_size = sum(size_bytes(layer, float_policy[layer.name]) for layer in problem.layers) + problem.rest.float_bytes
    return Baselines(
        float=Baseline(None, float_score, {"latency_ms": None, "energy_mj": None, "size_bytes": float_size}),
        uniform8=uniform8,
        rivals=tuple(rivals),
    )


def _widest_uniform(problem: Problem) -> dict[LayerBits, BitPolicy]:
    """Returns the uniform policies that fit, without those that are no wider than another one in either width."""
    free = [name for layers in problem.budget.decisions for name in layers]
    fitting: dict[LayerBits, BitPolicy] = {}
    for policy in uniform_policies(problem.budget):  # a layer with candidates of its own may have other widths
        fitting.setdefault(Counter(policy[name] for name in free).most_common(1)[0][0], policy)

    def covers(other: LayerBits, pair: LayerBits) -> bool:
        return (other.w_bits or 0) >= (pair.w_bits or 0) and (other.a_bits or 0) >= (pair.a_bits or 0)

    return {
        pair: policy
        for pair, policy in fitting.items()
        if not any(other != pair and covers(other, pair) for other in fitting)
    }


def _scored(policy: BitPolicy, pair: LayerBits, problem: Problem, workload: Workload) -> Baseline:
    score = workload.score(workload.quantized(policy), "ptq", threads=cores())
    return Baseline(pair.w_bits, score, problem.table.cost(policy), pair.a_bits, policy)
