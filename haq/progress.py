"""How work that takes long reports to its caller."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Observer", "Silent"]


class Observer(Protocol):
    """Receives progress. `haq.progress_bars.ProgressBars` draws it; a script may write its own."""

    def say(self, text: str) -> None:
        """Receives one line for the user."""

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """Receives the state of a task.

        Args:
            task: Short name of the task, such as `search`.
            done: How much is done; the task ends when this is `total`.
            total: How much there is.
            note: A few words on the state.
        """


class Silent:
    """An observer that shows nothing."""

    def say(self, text: str) -> None:
        """Ignores the line."""

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """Ignores the progress."""
