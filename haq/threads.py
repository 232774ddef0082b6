"""The number of threads that numerical work uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

__all__ = ["cores", "in_threads", "one_thread"]

Item = TypeVar("Item")
Done = TypeVar("Done")


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits PyTorch and BLAS to one thread, here and in threads that start inside the block.

    With small tensors and regressions this is faster, above all if other processes need the cores. It also fixes the
    order of sums, which decides their last digits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def in_threads(work: Callable[[Item], Done], items: Iterable[Item], most: int | None = None) -> list[Done]:
    """Applies a function to every item on several threads, one core each, and returns the results in order.

    Args:
        work: The function; it is called from the threads.
        items: Its arguments.
        most: Threads at a time; by default, and at most, the number of cores.
    """
    listed = list(items)
    if len(listed) == 1:
        return [work(listed[0])]
    with one_thread(), ThreadPoolExecutor(min(most or cores(), cores())) as pool:
        futures = [pool.submit(work, item) for item in listed]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
