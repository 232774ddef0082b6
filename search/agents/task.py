"""What an agent may know about its search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from haq.envs import Budget
from haq.errors import ConfigError
from haq.layers import LayerSpec
from haq.policy import BitPolicy
from haq.scores import RankBy, Score
from haq.search.agents.baselines import uniform_policies
from haq.search.agents.programme import Penalties, allocate
from haq.search.agents.protocol import First
from haq.search.sensitivity import Sensitivity

__all__ = ["Task", "penalties_of"]


@dataclass(frozen=True)
class Task:
    """What an agent may know.

    Attributes:
        layers: The layers of the network.
        budget: Candidate widths, pinned layers, ties and limits.
        sensitivity: What each free layer loses at each width; only for kinds of agents that are `informed`.
        float_score: Score of the float network on the validation images.
        rank_by: What the objective is; see `Score.objective`.
        trials: Total number of policies that will be scored.
        seed: Seed of everything random.
        start: Widths to start with, inside the budget.
    """

    layers: Sequence[LayerSpec]
    budget: Budget
    sensitivity: Sensitivity | None
    float_score: Score
    rank_by: RankBy
    trials: int
    seed: int
    start: BitPolicy | None = None

    @cached_property
    def penalties(self) -> Penalties:
        """The loss of quality for each layer and pair of widths, according to the measured sensitivities."""
        if self.sensitivity is None:
            raise ConfigError("the agent reads task.penalties; make its kind with AgentKind(..., informed=True)")
        return penalties_of(self.sensitivity, self.budget)

    @property
    def programme(self) -> First:
        """The solution of the integer programme, if there is one."""
        solved = allocate(self.budget, self.penalties)
        return [("programme", solved)] if solved is not None else []

    @property
    def by_hand(self) -> First:
        """What one would try by hand: the best uniform policy, and the widest one fitted to the budget in two ways."""
        uniform = uniform_policies(self.budget)[:1]
        decreased = self.budget.decrease(self.budget.uniform(self.budget.bits[-1]))
        spent = self.budget.spend(decreased)
        return [*(("uniform", policy) for policy in uniform), ("decreased", decreased), ("spent", spent)]


def penalties_of(sensitivity: Sensitivity, budget: Budget) -> Penalties:
    """Adds up the losses from weights and activations, for every candidate pair and every measured layer."""
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
