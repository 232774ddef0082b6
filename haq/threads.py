"""How many threads mathematics takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits PyTorch and BLAS to one thread, here and in threads that start inside the block.

    Small tensors and regressions are faster so, above all where other processes need the cores, and sums in another
    order would differ in the last digits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
