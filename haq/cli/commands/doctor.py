"""`haq doctor`: what this machine has, and what would trouble a search."""

from __future__ import annotations

import click
from rich.text import Text

from haq.cli.options import examples
from haq.cli.output import Result, output_options
from haq.cli.tables import facts
from haq.cli.terminal import console

__all__ = ["doctor"]


@click.command(epilog=examples("haq doctor", "haq doctor --quiet", "haq doctor --json > machine.json"))
@output_options
def doctor() -> Result:
    """Look at this machine: packages, cores, memory, GPU, folders; with a fix for each problem.

    With --quiet only problems are printed. The exit code is 1 when haq cannot be used, and otherwise 0.
    """
    from haq.doctor import examine

    found = list(examine())
    problems = [finding for finding in found if finding.problem]
    lines = tuple(f"! {finding.name}: {finding.problem}" for finding in problems)
    console.print(facts({finding.name: finding.text for finding in found}))
    for line in lines or ("No problems.",):
        console.print(Text(line, style="yellow" if lines else ""))
    usable = not any(finding.fatal for finding in found)
    return Result(
        lambda: {
            "usable": usable,
            "problems": [
                {"of": finding.name, "problem": finding.problem, "fatal": finding.fatal} for finding in problems
            ],
            **{finding.name.lower().replace(" ", "_"): finding.data for finding in found},
        },
        tuple(map(Text, lines)),
        exit_code=0 if usable else 1,
    )
