"""Timing what runs on a processor, or on a GPU that runs behind the program."""

from __future__ import annotations

from time import perf_counter_ns

import torch

__all__ = ["Stopwatch", "StreamStopwatch", "get_stopwatch"]


class Stopwatch:
    """Adds up the time that passes inside `with` blocks.

    Examples:
        >>> watch = Stopwatch()
        >>> with watch:
        ...     pass
        >>> watch.elapsed_ns > 0
        True
    """

    def __init__(self) -> None:
        self._total, self._start = 0, 0

    def __enter__(self) -> None:
        self._start = perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        self._total += perf_counter_ns() - self._start

    @property
    def elapsed_ns(self) -> int:
        """Nanoseconds so far."""
        return self._total

    def reset(self) -> None:
        """Starts again at zero."""
        self._total = 0


class StreamStopwatch(Stopwatch):
    """Adds up the time that passes on the current GPU between what the blocks put into its queue.

    A block only puts two events there, so that the program runs on; they are read when the time is asked for. Where
    the GPU is faster than the program, waiting for the next kernel is part of the time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._events: list[torch.cuda.Event] = []

    def __enter__(self) -> None:
        self._put()

    def __exit__(self, *_: object) -> None:
        self._put()

    @property
    def elapsed_ns(self) -> int:
        """Nanoseconds so far; waits until the GPU has got there."""
        if self._events:
            self._events[-1].synchronize()
        pairs = zip(self._events[::2], self._events[1::2], strict=True)
        self._total += sum(round(1e6 * start.elapsed_time(end)) for start, end in pairs)
        self._events.clear()
        return self._total

    def reset(self) -> None:
        """Starts again at zero."""
        super().reset()
        self._events.clear()

    def _put(self) -> None:
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append(event)


def get_stopwatch(device: str) -> Stopwatch:
    """Returns a stopwatch for `cpu` or `cuda`."""
    return StreamStopwatch() if device == "cuda" else Stopwatch()
