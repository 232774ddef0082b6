"""Reading what `torch.save` wrote, from anyone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

__all__ = ["read_tensors"]


def read_tensors(path: Path) -> Any:
    """Returns tensors and plain data; whatever else the file holds is an error, and no code in it is run.

    Raises:
        Exception: Of many kinds, with advice to load the file unsafely: callers say it in words of their own.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles and archives that it then refuses
        return torch.load(path, map_location="cpu", weights_only=True)
