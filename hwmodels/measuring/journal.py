"""A journal of finished measurements, from which an interrupted run resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from haq.errors import HardwareError
from haq.io.files import write_text

__all__ = ["Journal"]


class Journal:
    """A file of JSON lines: a header that says what is measured, then one line for each finished piece.

    Args:
        path: File to resume from, or to create.
        header: What is measured; a journal with another header is refused.

    Raises:
        HardwareError: The file belongs to another measurement, or cannot be read or written.
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
            raise HardwareError(f"{path} holds another measurement that was interrupted; finish it, or remove the file")
        self._done = {line["key"]: line["value"] for line in lines[1:]}
        with self._writing():
            write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    def __contains__(self, key: str) -> bool:
        """Whether the piece is finished."""
        return key in self._done

    def __getitem__(self, key: str) -> Any:
        """Returns the value of a finished piece."""
        return self._done[key]

    def __setitem__(self, key: str, value: Any) -> None:
        """Records the value of a finished piece."""
        self._done[key] = value
        self._append({"key": key, "value": value})

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._writing(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HardwareError(
                f"cannot write {self.path}: {error.strerror}; choose a folder that can be written"
            ) from None

    def _lines(self) -> list[dict[str, Any]]:
        """Reads whole lines; the last one may have been cut off."""
        found: list[dict[str, Any]] = []
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HardwareError(f"cannot read {self.path}: {error}; remove it") from None
        for line in text.splitlines():
            try:
                content = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(content, dict) or content.keys() != ({"key", "value"} if found else {"header"}):
                break
            found.append(content)
        return found
