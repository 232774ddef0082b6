"""Where commands print: results on standard output, progress and notes on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterable
from textwrap import wrap
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType
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
from rich.segment import Segment
from rich.text import Text

from haq.errors import printable

__all__ = ["TerminalObserver", "console", "notes"]


class _Console(Console):
    """Escapes characters that would control the terminal: names of layers and runs may come from strangers."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # `main` handles it; Rich would end the process with an error

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)


console = _Console()
notes = _Console(stderr=True)

_LINE_EVERY_S = 10.0  # between lines of progress without a terminal that redraws


class TerminalObserver:
    """Draws progress bars with the time left; if the terminal cannot redraw, prints a line now and then instead."""

    def __init__(self) -> None:
        self._redraws = notes.is_terminal and not notes.is_dumb_terminal
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[note]}"),
            console=notes,
            disable=not self._redraws or notes.quiet,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._last_line = time.monotonic()
        self._ended: set[str] = set()

    def __enter__(self) -> TerminalObserver:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bars; a word that is too long, such as a path, stays whole."""
        lines = wrap(text, notes.width, break_long_words=False, break_on_hyphens=False)
        notes.print(Text("\n".join(lines)), soft_wrap=True)

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """Moves the bar of a task.

        Args:
            task: Name of the task.
            done: Amount done.
            total: Amount in all.
            note: Text after the bar.
        """
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
