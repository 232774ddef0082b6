"""Runs batches on several threads, with progress.

PyTorch's own threads would work on one batch, and wait for each other at every small tensor of a late layer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from haq.threads import one_thread

__all__ = ["Percent", "Progress", "spread"]

Progress = Callable[[int, int], None]
"""Called with the percentage that is done, and 100."""


class _Stopped(Exception):
    """Ends the other threads after one has failed."""


class Percent:
    """Adds up the work of several threads.

    Args:
        progress: Called when the percentage changes, from the thread that did the work, never from two at once.
        total: All work, in the unit of `advance`.

    Attributes:
        stopped: Set it to end all threads at their next `advance`.
    """

    def __init__(self, progress: Progress, total: float) -> None:
        self._progress, self._total, self._done, self._shown = progress, total, 0.0, 0
        self._lock = threading.Lock()
        self.stopped = False
        progress(0, 100)

    def advance(self, work: float) -> None:
        """Adds work that is done; ends the thread if another one has failed."""
        if self.stopped:
            raise _Stopped
        with self._lock:
            self._done += work
            percent = min(100, int(100 * self._done / self._total + 1e-6))
            if percent > self._shown:
                self._shown = percent
                self._progress(percent, 100)


def spread(work: Callable[[int], None], count: int, threads: int, percent: Percent) -> None:
    """Calls `work` with 0 to `count - 1`, on several threads with one core each.

    Args:
        work: Calls `percent.advance` now and then.
        count: Number of calls.
        threads: Calls at a time. With 1, this thread makes all calls, and PyTorch may use its own threads.
        percent: Stops the other calls if one fails, or on Ctrl-C.
    """
    if threads == 1:
        for number in range(count):
            work(number)
        return
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        try:
            for done in [pool.submit(work, number) for number in range(count)]:
                done.result()
        except BaseException:
            percent.stopped = True
            pool.shutdown(cancel_futures=True)
            raise
