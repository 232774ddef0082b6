"""`haq compare-agents`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from haq.cli.options import at_least, examples, search_options
from haq.cli.output import Result, output_options
from haq.cli.tables import columns
from haq.cli.terminal import TerminalObserver, console
from haq.config import SearchConfig
from haq.errors import ConfigError
from haq.registry import AGENTS
from haq.scores import QUALITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from haq.search.comparison import Comparison, Standing

__all__ = ["compare_agents"]

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
@click.option("--agents", default=",".join(AGENTS), show_default="all", metavar="NAMES", help="Which ones.")
@click.option("--evaluations", default=60, show_default=True, help="Policies that each agent may have scored.")
@click.option("--seeds", default=3, show_default=True, help="Runs of each agent.")
@click.option(
    "--out", default="runs/compare-agents", show_default=True, type=click.Path(path_type=Path), metavar="FOLDER",
    help="Folder to make, for every evaluation as CSV and the best-so-far curves as PNG.",
)  # fmt: skip
@output_options
def compare_agents(agents: str, evaluations: int, seeds: int, out: Path, **options: Any) -> Result:
    """Let agents search the same budget with the same evaluator, and print the table of best-so-far scores.

    Policies are scored after calibration alone. Each agent proposes one policy after the other and knows every outcome
    before the next; --workers of them run at a time.
    """
    names = list(dict.fromkeys(name.strip() for name in agents.split(",")))
    for name in names:
        AGENTS.check(name, "--agents")
    at_least({"--evaluations": (evaluations, 1), "--seeds": (seeds, 1)})
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
    standings = found.standings(_RIVAL)
    table = _table(found, standings)
    console.print(table)
    console.print(
        f"{found.budget}. Best {QUALITIES[found.rank_by]} so far on the validation samples, after calibration alone: "
        f"mean ± standard deviation of {seeds} seeds. Matches {_RIVAL}: evaluations until it is as good as {_RIVAL} at "
        "the end, mean of the seeds (how many got there). Test top-1: of each run's best policy, not fine-tuned.",
        style="dim",
        highlight=False,
    )
    files = out / "comparison.csv", out / "curves.png"
    console.print("\n" + "\n".join(map(str, files)), markup=False, highlight=False, soft_wrap=True)

    def document() -> dict[str, Any]:
        settings = {"budget": found.budget, "ranked_by": found.rank_by, "rival": _RIVAL, "evaluations": evaluations}
        return {**settings, "seeds": seeds, "agents": standings, "files": files}

    return Result(document, (table,))


def _table(found: Comparison, standings: Sequence[Standing]) -> Table:
    counts = sorted({count for count in _SHOWN if count < found.evaluations} | {found.evaluations})[-3:]
    rival = any(standing.agent == _RIVAL for standing in standings)
    numbers = [f"best\nof {count}" for count in counts]
    numbers += [*([f"matches\n{_RIVAL}"] if rival else []), "test\ntop-1", "s per\nproposal"]
    table = columns("agent", *numbers, right=numbers)
    for standing in standings:
        cells = []
        for count in counts:
            values = found.shown([course.best(count) for course in found.of(standing.agent)])
            cells.append(f"{values.mean():.4f}" + (f"\n±{values.std():.4f}" if standing.runs > 1 else ""))
        if rival:
            cells.append(
                f"{standing.needed:.0f}\n({standing.matched} of {standing.runs})" if standing.needed else "never"
            )
        table.add_row(standing.agent, *cells, f"{standing.test_top1:.4f}", f"{standing.proposal_s:.3f}")
    return table
