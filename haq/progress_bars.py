"""Progress in a terminal or a notebook, for the command line and for scripts.

from haq.progress_bars import ProgressBars
from haq.search import run

with ProgressBars() as observer:
run(constraints="latency=10ms", observer=observer)
"""

from __future__ import annotations

import time
from textwrap import wrap
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from haq.errors import printable

__all__ = ["ProgressBars"]

_LINE_EVERY_S = 10.0  # without a terminal to redraw, one line so often


class ProgressBars:
    """An `Observer` that draws progress bars with time left; where lines cannot be redrawn it prints one now and then.

    Args:
        console: Where to draw, by default standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._redraws = self._console.is_terminal and not self._console.is_dumb_terminal
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._redraws or self._console.quiet,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._last_line = time.monotonic()
        self._ended: set[str] = set()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bars; a word that is too long, such as a path, stays whole."""
        lines = wrap(text, self._console.width, break_long_words=False, break_on_hyphens=False)
        self._console.print(Text("\n".join(map(printable, lines))), soft_wrap=True)

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """Moves the task's bar."""
        now = time.monotonic()
        started = self._started.setdefault(task, now)
        if self._redraws:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(task, total=total, note="")
            self._bars.update(self._tasks[task], completed=done, total=total, note=escape(note))
        elif (done == total and task not in self._ended) or now - self._last_line > _LINE_EVERY_S:
            self._last_line = now
            left = (now - started) / done * (total - done) if done else 0.0
            self.say(f"{task}: {done}/{total}{', ' + note if note else ''}, {left:.0f} s left")
        if done == total:
            self._ended.add(task)
        else:
            self._ended.discard(task)
