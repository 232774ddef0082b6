"""Ray tasks that say how far they are before they give their result."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

__all__ = ["gather"]

K = TypeVar("K", bound=Hashable)


def gather(
    streams: Mapping[Any, K],
    on_progress: Callable[[Mapping[K, int]], None],
    on_loss: Callable[[K, Exception], None] | None = None,
) -> dict[K, Any]:
    """Waits for streaming tasks, each of which yields integers and at last a result.

    Args:
        streams: What a task with `num_returns="streaming"` returned → its key.
        on_progress: Called with the last integer of every task, whenever one has changed.
        on_loss: Called with what a task raised, or why its worker is gone; without it that is raised here.

    Returns:
        Key → result, of the tasks that gave one.
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
