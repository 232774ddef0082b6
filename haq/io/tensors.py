"""Reading files of `torch.save` from strangers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

__all__ = ["read_tensors"]


def read_tensors(path: Path) -> Any:
    """Returns tensors and plain data; anything else in the file is an error, and code in it is not run.

    Raises:
        Exception: Of many types, with advice to load the file unsafely; callers write messages of their own.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles and archives that it then refuses
        return torch.load(path, map_location="cpu", weights_only=True)
