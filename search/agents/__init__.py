"""Agents: who proposes the policies of a search. Nothing here imports Ray."""

from haq.search.agents.protocol import Agent, AgentKind, First

__all__ = ["Agent", "AgentKind", "First"]
