"""What was measured so far, so that an interrupted measurement goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haq.errors import HardwareError

__all__ = ["Journal"]


class Journal:
    """A file of JSON lines: what is being measured, then one line for each piece that is done.

    Args:
        path: File to go on with, or to begin.
        header: What is being measured; a journal of something else is refused.

    Raises:
        HardwareError: The file is of another measurement, or cannot be read.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._done: dict[str, Any] = {}
        header = json.loads(json.dumps(header))
        if not path.exists():
            self._append({"header": header})
            return
        lines = self._lines()
        if not lines or lines[0].get("header") != header:
            raise HardwareError(
                f"{path} holds an interrupted measurement of something else; remove it, or give another -o"
            )
        self._done = {line["key"]: line["value"] for line in lines[1:]}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def __contains__(self, key: str) -> bool:
        """Whether the piece is done."""
        return key in self._done

    def __getitem__(self, key: str) -> Any:
        """What was measured."""
        return self._done[key]

    def __setitem__(self, key: str, value: Any) -> None:
        """Notes that a piece is done."""
        self._done[key] = value
        self._append({"key": key, "value": value})

    def remove(self) -> None:
        """Deletes the file, once everything in it is in the table."""
        self.path.unlink(missing_ok=True)

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise HardwareError(f"cannot write {self.path}: {error.strerror}; give another -o") from None

    def _lines(self) -> list[dict[str, Any]]:
        """Reads whole lines; the last one may have been cut off."""
        found: list[dict[str, Any]] = []
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HardwareError(f"cannot read {self.path}: {error}; remove it, or give another -o") from None
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found
