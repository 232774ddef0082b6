"""How many threads mathematics takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

__all__ = ["in_threads", "one_thread"]

Item = TypeVar("Item")
Done = TypeVar("Done")


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


def in_threads(work: Callable[[Item], Done], items: Iterable[Item]) -> list[Done]:
    """Returns what `work` gives for every item, in order, on as many threads as there are cores, one core each."""
    listed = list(items)
    if len(listed) == 1:
        return [work(listed[0])]
    with one_thread(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        futures = [pool.submit(work, item) for item in listed]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
