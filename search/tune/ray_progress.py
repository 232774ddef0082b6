"""Ray tasks that report progress before they return their result."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Hashable, Mapping
from typing import Any, TypeVar

__all__ = ["gather", "reporting"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


def reporting(work: Callable[[Callable[[int], None]], T]) -> Generator[int, None, T]:
    """Runs `work` in a thread, yields every integer that it reports, and returns its result.

    Args:
        work: Called with the function that it reports with.
    """
    reports: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    result: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work(reports.put))
        except BaseException as error:
            errors.append(error)
        finally:
            reports.put(None)

    threading.Thread(target=run, daemon=True).start()
    while (report := reports.get()) is not None:
        yield report
    if errors:
        raise errors[0]
    return result[0]


def gather(
    streams: Mapping[Any, K],
    on_progress: Callable[[Mapping[K, int]], None],
    on_loss: Callable[[K, Exception], None] | None = None,
) -> dict[K, Any]:
    """Waits for streaming tasks, each of which yields integers and finally a result.

    Args:
        streams: What a task with `num_returns="streaming"` returned → its key.
        on_progress: Called with the last integer of every task, whenever one has changed.
        on_loss: Called with the key of a task that has no result, and with what it raised or why its worker died. By
            default the error is raised.

    Returns:
        Key → result, for the tasks that returned one.
    """
    import ray

    pending, taken = dict(streams), dict.fromkeys(streams.values(), 0)
    results: dict[K, Any] = {}
    while pending:
        ready: list[Any] = ray.wait(list(pending), num_returns=1, fetch_local=False)[0]
        try:
            report = ray.get(next(ready[0]))
        except StopIteration:
            del pending[ready[0]]
            continue
        except ray.exceptions.RayError as error:
            key = pending.pop(ready[0])
            if on_loss is None:
                raise
            on_loss(key, error)
            continue
        if isinstance(report, int):
            taken[pending[ready[0]]] = report
            on_progress(taken)
        else:
            results[pending[ready[0]]] = report
    return results
