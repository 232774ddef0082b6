"""A case of bad input: a command, and how it spoils the good input."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Spoil = str | bytes | None | Callable[[Path], None]
"""New content of a file, `None` to remove it, or what is done with its path."""


@dataclass(frozen=True)
class Case:
    """A command that must be refused.

    Attributes:
        command: After `haq`, as in a shell.
        message: Parts of the one line, in this order, with ` … ` between them.
        files: Path → how it differs from the good input.
    """

    command: str
    message: str
    files: Mapping[str, Spoil] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.command} [{self.message}]"

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.command)

    def prepare(self) -> None:
        """Spoils the good input in the current folder."""
        for name, spoil in self.files.items():
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if spoil is None:
                path.unlink()
            elif isinstance(spoil, str):
                path.write_text(spoil, encoding="utf-8", newline="")
            elif isinstance(spoil, bytes):
                path.write_bytes(spoil)
            else:
                spoil(path)


def edited(old: str, new: str) -> Spoil:
    """Replaces the first `old` in a text file."""

    def edit(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{path} has no {old!r}"
        path.write_text(text.replace(old, new, 1), encoding="utf-8", newline="")

    return edit


def encoded(encoding: str) -> Spoil:
    """Writes a text file in another encoding."""
    return lambda path: path.write_bytes(path.read_text(encoding="utf-8").encode(encoding)) and None


def cut(share: float) -> Spoil:
    """Keeps the first part of a file."""

    def shorten(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return shorten


def folder(path: Path) -> None:
    """Puts a folder in the file's place."""
    path.unlink(missing_ok=True)
    path.mkdir()


def link(target: str) -> Spoil:
    """Puts a symbolic link in the file's place."""

    def place(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return place


def put(keys: str, value: Any) -> Spoil:
    """Sets one value of a JSON file; `keys` as in `score.top1`, numbers for places in a list."""

    def change(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        *parents, last = keys.split(".")
        inner = content
        for key in parents:
            inner = inner[int(key)] if isinstance(inner, list) else inner[key]
        inner[last] = value
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")

    return change


def without(keys: str) -> Spoil:
    """Removes one key of a JSON file."""

    def change(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        *parents, last = keys.split(".")
        inner = content
        for key in parents:
            inner = inner[key]
        del inner[last]
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")

    return change
