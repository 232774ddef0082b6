"""The agent beyond HAQ: a DDPG that learns from predicted scores which widths to move, beside the guide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DDPG

from haq.layers import LayerSpec
from haq.search.agents.guided import Guide
from haq.search.agents.lattice import Floats, Indices
from haq.search.agents.predictor import Predictor
from haq.search.agents.projection import Projection
from haq.search.agents.protocol import AgentKind
from haq.search.agents.sb3_internals import log_nothing

if TYPE_CHECKING:
    from haq.search.agents.protocol import Agent, First
    from haq.search.agents.task import Task

__all__ = ["DDPG_IN_IMAGINATION", "Dreamer"]

_EPISODES, _ROUNDS = 32, 2  # imagined at a time, and how often before each proposal
_GRADIENT_STEPS = 12
_REACH = 2  # candidates that an action may move a width by
_NOISE, _NOISE_DECAY, _LEAST_NOISE = 0.6, 0.97, 0.15  # of actions; it falls with every proposal
_KEPT = 4096  # episodes


Singles = NDArray[np.float32]


class Dreamer(Guide):
    """Adds an agent's proposals to the guide's candidates; the prediction decides between them.

    The agent visits the decisions in order and moves each width of a base policy, the best so far, by up to two
    candidates; the result is fitted to the budget, downwards and upwards. Before each proposal the agent runs imagined
    episodes, which the prediction rewards and which cost no trial (Dyna, Sutton 1991; MBPO, Janner et al. 2019,
    arXiv:1906.08253). The reward is how much lower the hope is than the base's, divided by the spread of the hopes. The
    agent observes each layer's shape, scaled differently from HAQ's in `haq.envs`, and what a step of the layer's
    widths gains and costs. Every decision gets the episode's outcome as its reward, so nothing is bootstrapped.

    Args:
        projection: Onto the budget.
        layers: All layers of the network.
        seed: Of moves, initial weights and exploration.
    """

    def __init__(self, projection: Projection, layers: Sequence[LayerSpec], seed: int) -> None:
        super().__init__(projection, seed)
        self._widths = _width_numbers(projection)
        self._shapes = _shapes(projection, layers)
        spaces = _Spaces(self._seen(np.zeros(len(projection.decisions), np.intp)).shape[1] + 2, 2)
        self._ddpg = DDPG(
            "MlpPolicy",
            spaces,
            gamma=0.0,
            tau=0.01,
            batch_size=256,
            buffer_size=_KEPT * len(projection.decisions),
            policy_kwargs={"net_arch": [64, 64]},
            seed=seed,
            device="cpu",
        )
        log_nothing(self._ddpg)
        self._proposals = 0

    def inspired(self, base: Indices, predictor: Predictor) -> Indices:
        """Learns from imagined episodes; returns the agent's policies, one without exploration, others with little."""
        noise = max(_NOISE * _NOISE_DECAY**self._proposals, _LEAST_NOISE)
        self._proposals += 1
        for _ in range(_ROUNDS):
            observations, actions, policies = self._walk(base, _EPISODES, noise)
            hopes = predictor.hope(policies)
            spread = max(float(hopes.std()), 1e-6)
            self._keep(observations, actions, np.clip((float(predictor.hope(base[None])[0]) - hopes) / spread, -3, 3))
            self._ddpg.train(gradient_steps=_GRADIENT_STEPS, batch_size=self._ddpg.batch_size)
        policies = self._walk(base, _EPISODES, _LEAST_NOISE)[2]
        return np.unique(policies, axis=0)

    def _walk(self, base: Indices, episodes: int, noise: float) -> tuple[Singles, Singles, Indices]:
        """Returns observations and actions, `(F, episodes, n)`, and the policies that they end in."""
        seen = self._seen(base)
        actions = np.zeros((len(base), episodes, 2), np.float32)
        observations = np.zeros((len(base), episodes, seen.shape[1] + 2), np.float32)
        previous = np.zeros((episodes, 2), np.float32)
        policies = np.repeat(base[None], episodes, axis=0)
        for row in range(len(base)):
            observations[row] = np.concatenate([np.repeat(seen[row : row + 1], episodes, axis=0), previous], axis=1)
            with torch.no_grad():
                mean = self._ddpg.actor(torch.from_numpy(observations[row])).numpy()
            drawn = mean + noise * self._rng.standard_normal(mean.shape)
            drawn[0] = mean[0]
            actions[row] = previous = np.clip(drawn, -1, 1).astype(np.float32)
            policies[:, row] = self._stepped(row, policies[:, row], np.rint(_REACH * actions[row]).astype(np.intp))
        return observations, actions, self.projection.fit_all(policies)

    def _stepped(self, row: int, indices: Indices, moves: Indices) -> Indices:
        """Moves the widths of a decision by so many candidates.

        Args:
            row: Number of the decision.
            indices: Its pairs, `(P,)`.
            moves: Steps of each width, `(P, 2)`; without activations, the first counts.
        """
        steps = self.projection.steps[:, :, row]
        for field in range(steps.shape[1]):
            for move in range(_REACH):
                for up, wanted in ((0, moves[:, field] < -move), (1, moves[:, field] > move)):
                    indices = np.where(wanted, steps[up, field, indices], indices)
        return indices

    def _keep(self, observations: Singles, actions: Singles, rewards: Floats) -> None:
        buffer = self._ddpg.replay_buffer
        assert buffer is not None
        for observed, acted in zip(observations, actions, strict=True):
            for episode, reward in enumerate(rewards):
                buffer.add(
                    observed[episode],
                    observed[episode],
                    acted[episode],
                    np.array([reward], np.float32),
                    np.ones(1, np.float32),
                    [{}],
                )

    def _seen(self, base: Indices) -> Singles:
        """Returns what the agent observes of each layer, `(F, n)`."""
        projection, rows = self.projection, np.arange(len(base))
        parts = [self._shapes, self._widths[rows, base]]
        scale = projection.penalties[rows, base].mean() + 1e-9
        spread = projection.costs.mean(axis=(1, 2), keepdims=True) + 1e-9
        for steps in projection.steps.reshape(-1, *projection.penalties.shape):
            moved = steps[rows, base]
            change = projection.penalties[rows, moved] - projection.penalties[rows, base]
            parts.append(np.tanh(change / scale)[:, None])
            spent = (projection.costs[:, rows, moved] - projection.costs[:, rows, base]) / spread[:, :, 0]
            parts.append(np.tanh(spent.T))
        return np.concatenate(parts, axis=1).astype(np.float32)


class _Spaces(gymnasium.Env[Singles, Singles]):
    """The spaces alone: the agent runs many episodes at once, which no environment does."""

    def __init__(self, observation: int, action: int) -> None:
        self.observation_space: gymnasium.spaces.Space[Singles] = gymnasium.spaces.Box(
            -np.inf, np.inf, (observation,), np.float32
        )
        self.action_space: gymnasium.spaces.Space[Singles] = gymnasium.spaces.Box(-1.0, 1.0, (action,), np.float32)


def _width_numbers(projection: Projection) -> Floats:
    """Returns the widths of each decision's pairs, scaled to [0, 1], `(F, pairs, 2)`."""
    w_bits = projection.of_each(lambda layers, pair: (pair.w_bits or 0) / 8)
    return np.stack([w_bits, projection.of_each(lambda layers, pair: (pair.a_bits or 0) / 8)], axis=-1)


def _shapes(projection: Projection, layers: Sequence[LayerSpec]) -> Floats:
    """Returns what each decision's first layer is: depth, channels, kernel, stride, input, weights, kind, `(F, 8)`."""
    number = {layer.name: row for row, layer in enumerate(layers)}
    rows = np.array(
        [
            [
                row, np.log2(layer.in_channels), np.log2(layer.out_channels), max(layer.kernel), max(layer.stride),
                max(layer.in_size), np.log2(layer.params), layer.kind == "depthwise",
            ]
            for row, layer in enumerate(layers)
        ],
        np.float64,
    )  # fmt: skip
    scaled: Floats = rows / np.maximum(rows.max(axis=0), 1.0)
    return scaled[[number[layers[0]] for layers in projection.decisions]]


def _ddpg(task: Task) -> tuple[Agent, First]:
    agent = Dreamer(Projection(task.budget, task.penalties), task.layers, task.seed)
    return agent, [*task.programme, *task.by_hand]


DDPG_IN_IMAGINATION = AgentKind(_ddpg, informed=True)
