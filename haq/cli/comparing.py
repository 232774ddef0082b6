"""`haq compare-agents`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich import box
from rich.table import Table

from haq.cli.options import examples, search_options
from haq.cli.terminal import TerminalObserver, console
from haq.config import SearchConfig
from haq.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from haq.search.comparison import Comparison

__all__ = ["compare_agents"]

_AGENTS = ("predictor", "ddpg", "haq", "evolution", "ilp", "random", "uniform")
_RIVAL = "evolution"
_SHOWN = (10, 25, 50, 100, 200, 500, 1000)


@click.command(
    "compare-agents",
    epilog=examples(
        "haq compare-agents --constraint latency=50%",
        "haq compare-agents --agents predictor,evolution,random --evaluations 200 --seeds 5 --constraint size=40%",
    ),
)
@search_options
@click.option("--agents", default=",".join(_AGENTS), show_default="all", metavar="NAMES", help="Which ones.")
@click.option("--evaluations", default=60, show_default=True, help="Policies that each agent may have scored.")
@click.option("--seeds", default=3, show_default=True, help="Runs of each agent.")
@click.option(
    "--out", default="runs/compare-agents", show_default=True, type=click.Path(path_type=Path), metavar="FOLDER",
    help="Folder to make, for every evaluation as CSV and the best-so-far curves as PNG.",
)  # fmt: skip
@click.pass_context
def compare_agents(
    context: click.Context, /, agents: str, evaluations: int, seeds: int, out: Path, **options: Any
) -> None:
    """Let agents search the same budget with the same evaluator, and print the table of best-so-far scores.

    Policies are scored after calibration alone. Each agent proposes one policy after the other and knows every outcome
    before the next; --workers of them run at a time.
    """
    names = list(dict.fromkeys(name.strip() for name in agents.split(",")))
    for name in names:
        if name not in _AGENTS:
            raise ConfigError(f"--agents {name}{did_you_mean(name, _AGENTS)}: use {', '.join(_AGENTS)}")
    for option, value in (("--evaluations", evaluations), ("--seeds", seeds)):
        if value < 1:
            raise ConfigError(f"{option} {value}: must be at least 1")
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {"sensitivity.json"}):
        raise ConfigError(f"{str(out)!r} exists; give another --out")
    config = SearchConfig(trials=evaluations, qat_steps=0, **options)
    with TerminalObserver() as observer:
        from haq.report.curves import draw_curves
        from haq.search.comparison import compare_agents as compare

        found = compare(config, names, range(seeds), out, observer)
    out.mkdir(parents=True, exist_ok=True)
    found.to_frame().to_csv(out / "comparison.csv", index=False)
    draw_curves(found, out / "curves.png")
    console.print(_table(found))
    what = "top-1" if found.rank_by == "top1" else "loss"
    console.print(
        f"{found.budget}. Best {what} so far on the validation samples, after calibration alone: mean ± standard "
        f"deviation of {seeds} seeds. Matches {_RIVAL}: evaluations until it is as good as {_RIVAL} at the end, mean "
        "of the seeds (how many got there). Test top-1: of each run's best policy, not fine-tuned.",
        style="dim",
        highlight=False,
    )
    console.print(f"\n{out / 'comparison.csv'}\n{out / 'curves.png'}", markup=False, highlight=False, soft_wrap=True)


def _table(found: Comparison) -> Table:
    shown = sorted({count for count in _SHOWN if count < found.evaluations} | {found.evaluations})
    rivals = found.of(_RIVAL)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    table.add_column("agent")
    for count in shown[-3:]:
        table.add_column(f"best\nof {count}", justify="right")
    if rivals:
        table.add_column(f"matches\n{_RIVAL}", justify="right")
    table.add_column("test\ntop-1", justify="right")
    table.add_column("s per\nproposal", justify="right")
    tested = dict(zip(found.courses, found.test_top1, strict=True))
    for agent in dict.fromkeys(course.agent for course in found.courses):
        courses = found.of(agent)
        cells = []
        for count in shown[-3:]:
            values = found.shown([course.best(count) for course in courses])
            cells.append(f"{values.mean():.4f}" + (f"\n±{values.std():.4f}" if len(courses) > 1 else ""))
        if rivals:
            target = float(np.exp(np.mean(np.log([rival.best(found.evaluations) for rival in rivals]))))
            needed = np.array([course.needed(target) for course in courses])
            there = needed[np.isfinite(needed)]
            cells.append(f"{there.mean():.0f}\n({len(there)} of {len(needed)})" if len(there) else "never")
        cells.append(f"{np.mean([tested[course] for course in courses]):.4f}")
        cells.append(f"{np.mean([course.deciding_s / len(course.policies) for course in courses]):.3f}")
        table.add_row(agent, *cells)
    return table
