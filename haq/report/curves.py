"""Best-so-far curves of several agents."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from haq.io.files import replacing
from haq.scores import QUALITIES, RankBy

__all__ = ["draw_curves"]

_STYLES = (("#2f81d6", "-"), ("#1c2127", "--"), ("#8b95a1", "-."), ("#d98c1f", "-"), ("#4d8c57", ":"), ("#b05c8f", "-"))


class Course(Protocol):
    """The results of one agent with one seed."""

    @property
    def agent(self) -> str:
        """Name of the agent."""

    def best(self, evaluations: int) -> float:
        """Returns the best objective of the first evaluations."""


class Courses(Protocol):
    """Searches of several agents under one budget."""

    @property
    def courses(self) -> tuple[Course, ...]:
        """The courses of all agents and seeds."""

    @property
    def evaluations(self) -> int:
        """Number of evaluations of each course."""

    @property
    def rank_by(self) -> RankBy:
        """Quality that the objectives measure."""

    @property
    def budget(self) -> str:
        """The budget for people."""

    def shown(self, objective: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Returns objectives as top-1 or as losses."""


def draw_curves(found: Courses, path: Path) -> None:
    """Writes a PNG with each agent's mean over the seeds, and their range behind it.

    Args:
        found: The courses.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    counts = np.arange(1, found.evaluations + 1)
    for number, agent in enumerate(dict.fromkeys(course.agent for course in found.courses)):
        curves = np.array(
            [found.shown([c.best(int(count)) for count in counts]) for c in found.courses if c.agent == agent]
        )
        color, style = _STYLES[number % len(_STYLES)]
        axes.plot(counts, curves.mean(axis=0), style, color=color, label=agent, linewidth=1.8)
        axes.fill_between(counts, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.12, linewidth=0)
    axes.set_xlabel("policies scored")
    axes.set_ylabel(f"best {QUALITIES[found.rank_by]} so far" + ("" if found.rank_by == "top1" else " (nats)"))
    if found.rank_by != "top1":
        axes.set_yscale("log")
    axes.set_title(found.budget, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
