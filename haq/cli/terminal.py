"""Where commands print: results on standard output, progress and notes on standard error."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from haq.errors import printable
from haq.progress_bars import ProgressBars

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


class TerminalObserver(ProgressBars):
    """Progress of a command, on standard error."""

    def __init__(self) -> None:
        super().__init__(notes)
