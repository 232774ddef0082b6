"""Allocating bits by an integer programme, as toolkits do: the least sum of sensitivities inside the budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from haq.envs import Budget
from haq.policy import BitPolicy, LayerBits

__all__ = ["Penalties", "allocate"]

Floats = npt.NDArray[np.float64]
Penalties = Mapping[str, Mapping[LayerBits, float]]
"""Layer → pair of widths → the quality that this pair alone costs; lower is better."""

_GAP = 1e-4
_SECONDS = 20.0


def allocate(budget: Budget, penalties: Penalties, without: Iterable[BitPolicy] = ()) -> BitPolicy | None:
    """Returns the policy with the least total penalty that meets every limit, or `None` if none was found.

    There is one binary variable for each decision and candidate pair, exactly one of them is 1 in each decision, and
    each limit is a linear inequality (HAWQ-V3, Yao et al. 2021, arXiv:2011.10680, section 3.4). A limit on working
    memory is no sum over layers; it is left out here, and the policy is fitted to it afterwards.

    Args:
        budget: Candidates, pinned layers, ties and limits.
        penalties: Of every free layer and candidate pair.
        without: Policies to exclude.
    """
    table = budget.table
    choices = [(layers, pair) for layers in budget.decisions for pair in budget.candidates(layers[0])]
    objective = np.array([sum(penalties[name][pair] for name in layers) for layers, pair in choices])
    one_each = np.array([[layers == chosen for layers, _ in choices] for chosen in budget.decisions], np.float64)
    constraints = [LinearConstraint(one_each, 1.0, 1.0)]
    fixed = budget.uniform(budget.bits[0])
    for limit in budget.constraints:
        if limit.field not in table.additive:
            continue
        costs = np.array([budget.cost(layers, pair, limit.field) for layers, pair in choices])
        free = sum(budget.cost(layers, fixed[layers[0]], limit.field) for layers in budget.decisions)
        lowest = table.cost(fixed)[limit.field] - free
        constraints.append(LinearConstraint(costs / limit.limit, -np.inf, 1.0 - lowest / limit.limit))
    for policy in without:
        taken = np.array([policy[layers[0]] == pair for layers, pair in choices], np.float64)
        constraints.append(LinearConstraint(taken, -np.inf, len(budget.decisions) - 1))
    scale = np.abs(objective).max() or 1.0
    solved = milp(
        objective / scale,
        constraints=constraints,
        integrality=np.ones(len(objective)),
        bounds=Bounds(0.0, 1.0),
        options={"mip_rel_gap": _GAP, "time_limit": _SECONDS},
    )
    if solved.x is None:
        return None
    chosen = dict(fixed)
    for owned in one_each > 0:
        layers, pair = choices[int(np.where(owned, solved.x, -np.inf).argmax())]
        chosen |= dict.fromkeys(layers, pair)
    policy = BitPolicy({name: chosen[name] for name in table.layers}, budget.scheme)
    if budget.allows(policy):
        return policy
    # The solver accepts a limit that is exceeded by a hair; such a policy is excluded, and the next best one taken
    over = [constraint for constraint in budget.constraints if constraint.field in table.additive]
    if any(table.cost(policy)[c.field] > c.limit for c in over) and policy not in (unwanted := [*without]):
        return allocate(budget, penalties, [*unwanted, policy])
    return budget.decrease(policy)
