"""How long work tells its caller what it is doing."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Observer", "Silent"]


class Observer(Protocol):
    """Receives progress; the command line draws it, a script may ignore it."""

    def say(self, text: str) -> None:
        """Takes one line about something that was found out."""

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """Takes the state of a task that lasts; `done == total` ends it."""


class Silent:
    """An observer that shows nothing."""

    def say(self, text: str) -> None:
        """Ignores the line."""

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """Ignores the progress."""
