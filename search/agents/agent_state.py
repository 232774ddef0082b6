"""Reading an agent's state, which lies in a run folder that may come from anyone."""

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
    """Turns whatever a state of another program or time makes fail in the block into one line."""
    try:
        yield
    except HaqError:
        raise
    except Exception as error:  # torch.load raises many kinds, and so does what takes the content in
        reason = " ".join(str(error).split(". ")[0].split())[:100] or type(error).__name__
        raise ConfigError(
            f"cannot read {str(path)!r} as the state of a search: {reason}; remove it, and the agent learns again from "
            "the trials"
        ) from None
