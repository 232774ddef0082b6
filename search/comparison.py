"""Agents side by side: the same budget, evaluator, number of evaluations and seeds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from haq.config import SearchConfig
from haq.envs import Budget
from haq.layers import LayerSpec
from haq.policy import BitPolicy
from haq.progress import Observer
from haq.quant.evaluation import evaluate
from haq.quant.sample_counts import at_most
from haq.registry import AGENTS
from haq.scores import RankBy, Score
from haq.search.agents.protocol import AgentKind, CheckedAgent
from haq.search.agents.task import Task
from haq.search.finals import test_all
from haq.search.problem import pose
from haq.search.scoring import choose_rank_by
from haq.search.sensitivity import Sensitivity
from haq.search.tune.cluster import ray_workers
from haq.search.tune.ray_progress import gather
from haq.search.tune.trainable import scores_of
from haq.search.tune.tuning import sensitivity_of
from haq.search.workload import Workload, make_workload

__all__ = ["Comparison", "Course", "Standing", "compare_agents"]


@dataclass(frozen=True)
class Course:
    """What one agent proposed with one seed, in order.

    Attributes:
        agent: Its name, as in `haq.registry.AGENTS`.
        seed: The agent's seed.
        policies: The policies that it proposed.
        origins: The part of the agent that proposed each policy.
        objectives: Objective of each policy after calibration, 0 to 1.
        deciding_s: Seconds spent on proposing and learning, over all evaluations.
    """

    agent: str
    seed: int
    policies: tuple[BitPolicy, ...]
    origins: tuple[str, ...]
    objectives: tuple[float, ...]
    deciding_s: float

    def best(self, evaluations: int) -> float:
        """Returns the best objective of the first evaluations, or of all if the agent stopped earlier."""
        return max(self.objectives[:evaluations], default=0.0)

    def needed(self, objective: float) -> float:
        """Returns how many evaluations it took to reach an objective; infinity if it was never reached."""
        return next((n for n, value in enumerate(self.objectives, 1) if value >= objective - 1e-12), float("inf"))

    @property
    def winner(self) -> BitPolicy:
        """The policy with the best objective."""
        return self.policies[int(np.argmax(self.objectives))]


@dataclass(frozen=True)
class Standing:
    """How one agent did.

    Attributes:
        agent: Its name, as in `haq.registry.AGENTS`.
        runs: Number of its courses.
        best: Best top-1 or loss of a run, depending on what policies were ranked by; mean over the runs.
        best_std: Standard deviation of the same.
        matched: Number of runs that reached the rival's mean result.
        needed: Mean number of evaluations that these runs took to reach it; `None` if there are no such runs.
        test_top1: Mean top-1 of the winners on the test images.
        proposal_s: Mean seconds per proposal.
    """

    agent: str
    runs: int
    best: float
    best_std: float
    matched: int
    needed: float | None
    test_top1: float
    proposal_s: float


@dataclass(frozen=True)
class Comparison:
    """Courses of several agents.

    Attributes:
        courses: In the order of agents, then seeds; a single one for agents that draw nothing at random.
        evaluations: Evaluations that each course was allowed.
        rank_by: What the objective is; see `Score.objective`.
        budget: The constraints as text.
        test_top1: Top-1 of each course's winner on the test images, after calibration.
    """

    courses: tuple[Course, ...]
    evaluations: int
    rank_by: RankBy
    budget: str
    test_top1: tuple[float, ...]

    def of(self, agent: str) -> list[Course]:
        """Returns all courses of an agent."""
        return [course for course in self.courses if course.agent == agent]

    def shown(self, objective: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Returns objectives in familiar terms: top-1, or the loss, which is −log of the objective."""
        values = np.asarray(objective, np.float64)
        return values if self.rank_by == "top1" else -np.log(np.maximum(values, 1e-12))

    def standings(self, rival: str) -> list[Standing]:
        """Returns how each agent did, in the order of the agents.

        Args:
            rival: The agent whose mean result the others have to match.
        """
        rivals = [course.best(self.evaluations) for course in self.of(rival)]
        target = float(np.exp(np.mean(np.log(rivals)))) if rivals else float("inf")
        tested = dict(zip(self.courses, self.test_top1, strict=True))
        found = []
        for agent in dict.fromkeys(course.agent for course in self.courses):
            courses = self.of(agent)
            values = self.shown([course.best(self.evaluations) for course in courses])
            there = [count for count in (course.needed(target) for course in courses) if np.isfinite(count)]
            found.append(
                Standing(
                    agent, len(courses), float(values.mean()), float(values.std()), len(there),
                    float(np.mean(there)) if there else None,
                    float(np.mean([tested[course] for course in courses])),
                    float(np.mean([course.deciding_s / len(course.policies) for course in courses])),
                )
            )  # fmt: skip
        return found

    def to_frame(self) -> pd.DataFrame:
        """Returns a table with a row for every evaluation."""
        rows = [
            {
                "agent": course.agent, "seed": course.seed, "evaluation": number, "origin": origin,
                "objective": objective, "best": course.best(number),
                "bits": " ".join(f"{bits.w_bits}/{bits.a_bits}" for bits in policy.values()),
            }
            for course in self.courses
            for number, (policy, origin, objective) in enumerate(
                zip(course.policies, course.origins, course.objectives, strict=True), 1
            )
        ]  # fmt: skip
        return pd.DataFrame(rows)


def compare_agents(
    config: SearchConfig, agents: Sequence[str], seeds: Sequence[int], folder: Path, observer: Observer
) -> Comparison:
    """Lets every agent propose `config.trials` policies with every seed; they are scored after calibration only.

    Each course runs on one worker, one proposal after the other, so that an agent knows all outcomes before it proposes
    again; `config.workers` courses run at a time. A policy that any course has already scored is not scored again.

    Args:
        config: Options of the search that is posed; its agent and seed are not used.
        agents: Names in `haq.registry.AGENTS`, or agents in a user's file, `file.py:name`.
        seeds: Seeds of the agents; calibration and validation images are the same for all.
        folder: Where the sensitivities are written.
        observer: Receives progress.
    """
    problem = pose(config, observer)
    with ray_workers(config.workers, config.address, config.gpus_per_trial):
        import ray

        float_score = evaluate(problem.model, at_most(problem.data.val, problem.effort.validation), "float")
        few = problem.effort.few_labels
        rank_by = choose_rank_by(config, problem.data, float_score, observer, config.tuned, few)
        workload = make_workload(config, problem, rank_by, observer)
        measured = None
        kinds = {name: AgentKind.of(AGENTS.resolve(name), name) for name in agents}
        if any(kind.informed for kind in kinds.values()):
            measured = sensitivity_of(problem, workload, folder / "sensitivity.json", observer)
        archive, shared = ray.remote(num_cpus=0)(_Archive).remote(), ray.put(workload)
        setting: Any = ray.put((problem.layers, problem.budget, measured, float_score, config.trials))
        run = ray.remote(num_cpus=1, num_returns="streaming")(_course)
        keys = [(agent, seed) for agent in agents for seed in (seeds if kinds[agent].random else seeds[:1])]
        streams = {
            run.remote(agent, kinds[agent], seed, setting, shared, archive): (agent, seed) for agent, seed in keys
        }
        total = config.trials * len(keys)
        observer.progress("compare", 0, total)
        found = gather(streams, lambda taken: observer.progress("compare", sum(taken.values()), total))
        courses = tuple(found[key] for key in keys)
        winners = list(dict.fromkeys(course.winner for course in courses))
        networks = {str(number): workload.quantized(policy) for number, policy in enumerate(winners)}
        top1 = test_all(networks, problem.data.test, lambda done, total: observer.progress("test", done, total))
    tested = dict(zip(winners, top1.values(), strict=True))
    budget = ", ".join(str(constraint) for constraint in problem.budget.constraints)
    return Comparison(
        courses, config.trials, workload.rank_by, budget, tuple(tested[course.winner] for course in courses)
    )


class _Archive:
    """Keeps the objectives of all scored policies, shared by all courses."""

    def __init__(self) -> None:
        self._objectives: dict[BitPolicy, float] = {}

    def get(self, policy: BitPolicy) -> float | None:
        return self._objectives.get(policy)

    def put(self, policy: BitPolicy, objective: float) -> None:
        self._objectives[policy] = objective


def _course(
    agent: str,
    kind: AgentKind,
    seed: int,
    setting: tuple[Sequence[LayerSpec], Budget, Sensitivity | None, Score, int],
    workload: Workload,
    archive: Any,
) -> Iterator[int | Course]:
    """Yields the number of evaluations so far, repeatedly, then the number allowed, and finally the course."""
    import ray

    torch.set_num_threads(1)
    layers, budget, measured, float_score, evaluations = setting
    deciding = -time.perf_counter()
    task = Task(layers, budget, measured, float_score, workload.rank_by, evaluations, seed)
    agent_made, first = kind.agent_for(task)
    proposer = CheckedAgent(agent_made, budget)
    waiting = list(first)
    seen: dict[BitPolicy, float] = {}
    origins: list[str] = []
    while len(seen) < evaluations:
        fresh = [(origin, policy) for origin, policy in waiting if policy not in seen][:1]
        proposal = fresh[0] if fresh else proposer.propose(seen)
        if proposal is None:
            break
        origin, policy = proposal
        deciding += time.perf_counter()
        objective = ray.get(archive.get.remote(policy))
        if objective is None:
            objective = next(scores_of(workload, policy, 0)).objective(workload.rank_by)
            archive.put.remote(policy, objective)
        deciding -= time.perf_counter()
        proposer.learn(policy, objective)
        seen[policy] = objective
        origins.append(origin)
        yield len(seen)
    deciding += time.perf_counter()
    yield evaluations
    yield Course(agent, seed, tuple(seen), tuple(origins), tuple(seen.values()), deciding)
