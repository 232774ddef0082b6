"""Reading the file of an agent's state. It may come with a run folder from anyone, so it is checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from haq.errors import ConfigError, HaqError
from haq.io.tensors import read_tensors

__all__ = ["check_state", "read_json", "reading"]


def read_json(path: Path) -> Any:
    """Reads a state of plain data.

    Raises:
        ConfigError: It is damaged.
    """
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))


def check_state(path: Path) -> None:
    """Raises `ConfigError` if there is a state that is neither plain data nor tensors."""
    if path.exists():
        with reading(path):
            content = path.read_bytes()
            json.loads(content) if content.startswith(b"{") else read_tensors(path)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Reports whatever a damaged or foreign state raises in the block as one line, a `ConfigError`."""
    try:
        yield
    except HaqError:
        raise
    except Exception as error:  # torch.load raises many kinds, and so does restoring
        reason = " ".join(str(error).split(". ")[0].split())[:100] or type(error).__name__
        raise ConfigError(
            f"cannot read {str(path)!r} as the state of a search: {reason}; remove it, and the agent learns again from "
            "the trials"
        ) from None
