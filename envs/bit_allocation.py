"""The Gymnasium environment in which an agent decides widths layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from haq.envs.actions import action_of, width_of
from haq.envs.budget import Budget
from haq.envs.features import layer_features
from haq.layers import LayerSpec
from haq.policy import BitPolicy, LayerBits
from haq.scores import RankBy, Score

__all__ = ["BitAllocationEnv", "Evaluator", "Transitions"]

Array = NDArray[np.float32]

_FEATURES = 10  # eight of the layer, then the kind of width to decide and the previous width
_REWARD_SCALE = 0.1  # λ of HAQ, section 3.3, for accuracies in percent points


class Evaluator(Protocol):
    """Scores a policy; the environment calls it once per episode."""

    def __call__(self, policy: BitPolicy) -> Score:
        """Returns the quality of the network quantized by `policy`."""


@dataclass(frozen=True)
class Transitions:
    """The steps of one episode; T is the number of widths that it decides.

    Attributes:
        observations: `(T, 10)`.
        actions: `(T, 1)`, those of the policy after it was fitted to the budget.
        next_observations: `(T, 10)`.
        dones: `(T,)`, 1 at the last step.
    """

    observations: Array
    actions: Array
    next_observations: Array
    dones: Array


class BitAllocationEnv(gymnasium.Env[Array, Array]):
    """Decides the widths of the free layers in order, weights before activations; only weights if the budget says so.

    Tied layers take one decision, at the first of them, which is also what the agent observes. After the last step, the
    policy is fitted to the budget.

    Observation, as in HAQ (Wang et al. 2019, arXiv:1811.08886, eq. 1): the eight `layer_features`, scaled over all
    layers of the network; whether weights (1) or activations (0) are decided; and the previous width divided by the
    widest candidate, 1 before the first decision. The last step returns the observation that preceded it. Action:
    `Box(-1, 1)`, see `width_of`. Reward: 0 until the last step, then λ·(accuracy − float accuracy) in percent points
    with λ = 0.1 (section 3.3).

    `info` of the last step holds `policy`, `cost`, and, when there is an evaluator, `score`.

    Differences from the public code (mit-han-lab/haq, `linear_quantize_env.py`):

    - Pinned layers are skipped. In the public code the agent decides them too; its decisions are then overwritten, but
      only if the policy exceeds the budget, and the network's input is priced at 7 bits.
    - Every episode starts from the same observation. In the public code the first observation holds a width of the
      previous episode.
    - The ninth feature says which width is decided now. In the public code it says which was decided before.
    - Widths move to the nearest candidate, and activations to those that the hardware runs beside the weights.
    - The observation is the same when only weights are decided. In the public code (`quantize_env.py`) it then lacks
      the ninth feature, and the tenth is an unscaled width.

    Args:
        layers: In the order of their first call.
        budget: Candidate widths, pinned layers, ties and limits.
        evaluator: Scores the fitted policy. Without one, every reward is 0; a searcher that scores policies elsewhere
            steps through the environment for its proposals, then uses `transitions` and `reward`.
        float_score: Score of the float network, which rewards are relative to.
        rank_by: Score that serves as accuracy; see `Score.objective`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (the base class declares it so)

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        budget: Budget,
        evaluator: Evaluator | None = None,
        float_score: Score | None = None,
        rank_by: RankBy = "top1",
    ) -> None:
        self.budget, self.rank_by = budget, rank_by
        self._names = [layer.name for layer in layers]
        tied = {name: decided for decided in budget.decisions for name in decided}
        self._decisions = list(dict.fromkeys(tied[name] for name in self._names if name in tied))
        if not self._decisions:
            raise ValueError("every layer is pinned, so there is nothing to decide")
        self._evaluator = evaluator
        self._float_objective = float_score.objective(rank_by) if float_score else 1.0
        self._features = layer_features(layers)[[self._names.index(decided[0]) for decided in self._decisions]]
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (_FEATURES,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._widths: list[int] = []
        self._widest = max(width for field in budget.fields for width in budget.widths(field))

    @property
    def decisions(self) -> int:
        """Number of free layers, of which tied ones count as one."""
        return len(self._decisions)

    @property
    def steps(self) -> int:
        """Length of an episode: one step for each width of each decision."""
        return len(self.budget.fields) * self.decisions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Starts at the first free layer."""
        super().reset(seed=seed)
        self._widths = []
        return self._observation(self._widths), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Sets the next width; returns `(observation, reward, terminated, truncated, info)`."""
        self._widths.append(width_of(float(np.asarray(action).reshape(-1)[0]), self._candidates(self._widths)))
        observation = self._observation(self._widths)
        if len(self._widths) < self.steps:
            return observation, 0.0, False, False, {}
        policy = self.budget.decrease(self._policy(self._widths))
        info: dict[str, Any] = {"policy": policy, "cost": self.budget.table.cost(policy)}
        reward = 0.0
        if self._evaluator is not None:
            info["score"] = self._evaluator(policy)
            reward = self.reward(info["score"].objective(self.rank_by))
        return observation, reward, True, False, info

    def reward(self, objective: float) -> float:
        """Returns the reward for an objective between 0 and 1; see `Score.objective`."""
        return _REWARD_SCALE * 100 * (objective - self._float_objective)

    def transitions(self, policy: BitPolicy) -> Transitions:
        """Returns the episode that ends in `policy` exactly, as if its widths had been the actions."""
        widths = [getattr(policy[tied[0]], field) for tied in self._decisions for field in self.budget.fields]
        seen = np.stack([self._observation(widths[:step]) for step in range(self.steps + 1)])
        actions = np.array(
            [[action_of(width, self._candidates(widths[:step]))] for step, width in enumerate(widths)], np.float32
        )
        dones = np.zeros(self.steps, np.float32)
        dones[-1] = 1.0
        return Transitions(seen[:-1], actions, seen[1:], dones)

    def _candidates(self, decided: Sequence[int]) -> tuple[int, ...]:
        """Returns the candidates of the next decision; activations must be legal beside the weights just decided."""
        number, place = divmod(len(decided), len(self.budget.fields))
        field, layer = self.budget.fields[place], self._decisions[number][0]
        return self.budget.widths(field, decided[-1] if field == "a_bits" else None, layer)

    def _policy(self, widths: Sequence[int]) -> BitPolicy:
        per_layer = len(self.budget.fields)
        chosen: dict[str, LayerBits] = {}
        for index, tied in enumerate(self._decisions):
            w_bits, a_bits = [*widths[index * per_layer : (index + 1) * per_layer], None][:2]
            chosen |= dict.fromkeys(tied, LayerBits(w_bits, a_bits))
        layers = {name: chosen.get(name) or self.budget.pinned[name] for name in self._names}
        return BitPolicy(layers, self.budget.scheme)

    def _observation(self, decided: Sequence[int]) -> Array:
        """Returns the observation after these decisions; after the last one, the observation that preceded it."""
        per_layer = len(self.budget.fields)
        step = min(len(decided), self.steps - 1)
        dynamic = [1.0 - step % per_layer, decided[step - 1] / self._widest if step else 1.0]
        return np.concatenate([self._features[step // per_layer], np.array(dynamic, np.float32)])
