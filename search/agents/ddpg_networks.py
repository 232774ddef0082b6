"""The actor and the critic of HAQ's public code, in the places of stable-baselines3's."""

from __future__ import annotations

import torch
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import Tensor, nn

__all__ = ["HaqPolicy"]


class HaqPolicy(TD3Policy):
    """Differs from its parent in the last function of the actor and in the first layer of the critic."""

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """Returns an actor that ends in a sigmoid, where its parent's has a hyperbolic tangent."""
        actor = super().make_actor(features_extractor)
        actor.mu[-1] = _Sigmoid()
        return actor

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """Returns a critic whose first layer has a map for the observation and another for the action."""
        critic = super().make_critic(features_extractor)
        for network in critic.q_networks:
            assert isinstance(network, nn.Sequential)
            both = network[0]
            assert isinstance(both, nn.Linear)
            network[0] = _ObservationAndAction(both.in_features - 1, both.out_features)
        return critic


class _Sigmoid(nn.Module):
    """From any number to an action in [−1, 1]; `Tanh` is twice as steep."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.sigmoid(x) - 1


class _ObservationAndAction(nn.Module):
    """Adds a linear map of the observation and one of the action in [0, 1].

    One map of both could do the same, but PyTorch starts with weights of up to 1/√inputs: up to 1 for the lone action.
    """

    def __init__(self, observed: int, units: int) -> None:
        super().__init__()
        self.observation, self.action = nn.Linear(observed, units), nn.Linear(1, units)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.observation(x[:, :-1]) + self.action((x[:, -1:] + 1) / 2)
        return mapped
