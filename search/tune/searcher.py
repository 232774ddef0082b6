"""Connects the agent to Ray Tune."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from haq.errors import HaqError
from haq.policy import BitPolicy
from haq.runs import Trial
from haq.scores import RankBy, Score
from haq.search.agents.agent_state import reading
from haq.search.agents.protocol import Agent

__all__ = ["HOPELESS", "METRIC", "BitSearcher", "Proposal"]

METRIC = "objective"
HOPELESS = 5
"""A search ends when so many trials have failed and none was scored: the next would fail for the same reason."""


@dataclass(frozen=True)
class Proposal:
    """A policy to score.

    Attributes:
        number: From 1.
        origin: What proposed it; see `haq.runs.Trial`.
        policy: Fits the budget.
    """

    number: int
    origin: str
    policy: BitPolicy


class BitSearcher(Searcher):
    """Asks the agent for the policy of every trial, and passes the outcome to the agent.

    Tune calls `suggest`, runs the trial, and then calls `on_trial_complete`; with several workers these interleave.
    No policy is proposed twice. If the first `HOPELESS` trials of this searcher all fail, it proposes no more.

    Args:
        agent: Proposes and learns.
        first: Policies to propose before the agent is asked, with their origin.
        finished: Called after every trial with this searcher, the proposal and its last result (`None` if its worker
            died).
        rank_by: What objectives are made of.
        stopped: Called before every proposal. Once it returns true, no more trials start; running ones end normally.

    Attributes:
        failure: Why the agent could not learn, which also ends the search. Tune would swallow an exception, and the
            trial would be lost.
    """

    def __init__(
        self,
        agent: Agent,
        first: Sequence[tuple[str, BitPolicy]] = (),
        finished: Callable[[BitSearcher, Proposal, dict[str, Any] | None], None] | None = None,
        rank_by: RankBy = "top1",
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._agent, self._first, self._finished, self.rank_by = agent, list(first), finished, rank_by
        self._seen: dict[BitPolicy, int] = {}
        self._running: dict[str, Proposal] = {}
        self._failures, self._successes = 0, 0
        self._stopped = stopped
        self.failure: HaqError | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # FINISHED is a string
        """Returns `{"policy": JSON}` for the next trial, or `FINISHED` if the search should end or nothing is left."""
        hopeless = self._failures >= HOPELESS and not self._successes
        number = 1 + max(self._seen.values(), default=0)
        proposal = None if self._stopped() or self.failure or hopeless else self._propose(number)
        if proposal is None:
            return str(Searcher.FINISHED)
        self._seen[proposal.policy] = proposal.number
        self._running[trial_id] = proposal
        # Text, because Tune would keep statistics of every number for as long as it runs
        return {"policy": json.dumps(proposal.policy.to_dict())}

    def _propose(self, number: int) -> Proposal | None:
        for origin, policy in self._first:
            if policy not in self._seen:
                return Proposal(number, origin, policy)
        found = self._agent.propose(self._seen)
        return Proposal(number, *found) if found else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Rewards the agent; a failed trial counts as an objective of 0."""
        proposal = self._running.pop(trial_id, None)
        if proposal is None:  # Tune ends a trial again where this has raised
            return
        result = None if error else result
        scores = [Score.from_dict(score) for score in (result or {}).get("scores") or []]
        if any(score.finite for score in scores):
            self._successes += 1
        else:
            self._failures += 1
        try:
            self.learn(proposal.number, proposal.policy, scores)
        except HaqError as error:
            self.failure = error
        if self._finished:
            self._finished(self, proposal, result)

    def learn(self, number: int, policy: BitPolicy, scores: Sequence[Score]) -> None:
        """Passes the outcome of a policy to the agent, also of one that was scored before this searcher was made.

        Args:
            number: Of its trial.
            policy: That was scored.
            scores: All scores of the trial; none if it failed.
        """
        self._seen[policy] = number
        self._agent.learn(policy, self._objective(scores))

    def save(self, checkpoint_path: str, last: Trial | None = None) -> None:
        """Writes the agent's state and the numbers of the trials it knows. Running trials will be proposed again.

        Args:
            checkpoint_path: File to write.
            last: The newest trial of this state, which the run folder may not hold yet.
        """
        running = {proposal.number for proposal in self._running.values()}
        known = [number for number in self._seen.values() if number not in running]
        self._agent.save(Path(checkpoint_path), {"known": known, "last": last.to_dict() if last else None})

    def restore(self, checkpoint_path: str, trials: Sequence[Trial] = ()) -> list[Trial]:
        """Restores what `save` wrote, and lets the agent learn from trials that are not in the state.

        Args:
            checkpoint_path: File to read.
            trials: Those that ended, in this order.

        Returns:
            The last trial of the state, if it is not in `trials`.

        Raises:
            ConfigError: The file is damaged.
        """
        with reading(Path(checkpoint_path)):
            extra = self._agent.load(Path(checkpoint_path))
            known, last = set(extra["known"]), extra["last"]
            lost = [Trial.from_dict(last)] if last and last["number"] not in {trial.number for trial in trials} else []
        for trial in [*trials, *lost]:
            if trial.number in known:
                self._seen[trial.policy] = trial.number
                self._agent.recall(trial.policy, self._objective(trial.scores))
            else:
                self.learn(trial.number, trial.policy, trial.scores)
        return lost

    def _objective(self, scores: Sequence[Score]) -> float:
        """Of the first score alone; see `Agent.learn`."""
        return scores[0].objective(self.rank_by) if scores else 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Returns nothing: Tune pickles its searcher to restore it, but `save` writes a file that cannot run code."""
        return {}
