"""Agents: who proposes the policies of a search. Nothing here imports Ray."""
