"""The bit-allocation environment: observation, action, budget, reward."""

from haq.envs.actions import action_of, width_of
from haq.envs.bit_allocation import BitAllocationEnv, Evaluator, Transitions
from haq.envs.budget import Budget

__all__ = ["BitAllocationEnv", "Budget", "Evaluator", "Transitions", "action_of", "width_of"]
