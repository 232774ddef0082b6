"""What README.md and docs/ ask a reader to type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "blocks", "commands", "inline_code", "pages"]

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```([\w-]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Path from the checkout's root.
        language: `sh`, `console`, `python`, `yaml`, …
        text: Its lines.
    """

    page: str
    language: str
    text: str


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(*languages: str) -> list[Block]:
    """Returns all blocks in these languages, in order of pages."""
    return [
        Block(page.relative_to(ROOT).as_posix(), found[1], found[2])
        for page in pages()
        for found in _FENCE.finditer(page.read_text(encoding="utf-8"))
        if found[1] in languages
    ]


def commands() -> list[tuple[str, str]]:
    """Returns `(page, command)` of all lines of `sh` blocks, and of those after `$` in `console` blocks."""
    return [(block.page, line) for block in blocks("sh", "console") for line in _typed(block)]


def _typed(block: Block) -> Iterator[str]:
    text = re.sub(r"\\\n\s*", "", block.text)
    for line in text.splitlines():
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        command = re.sub(r"\s+#.*|^#.*", "", line).strip()
        command = re.sub(r"^\w+=\$\((.*)\)$", r"\1", command)  # run=$(haq …)
        command = re.sub(r" > \S+$", "", command)
        if command:
            yield re.sub(r"\s+", " ", command)


def inline_code() -> list[tuple[str, str]]:
    """Returns `(page, code)` of all code inside sentences and tables."""
    found = []
    for page in pages():
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        name = page.relative_to(ROOT).as_posix()
        found += [(name, " ".join(code.split())) for code in re.findall(r"`([^`]+)`", text)]
    return found
