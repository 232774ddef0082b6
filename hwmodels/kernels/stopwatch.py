"""Stopwatches for the CPU, and for a GPU that works through a queue while the program runs on."""

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
    """Adds up the time that `with` blocks take on the current GPU.

    A block only puts two events into the GPU's queue and does not wait; they are read together with the time. If the
    GPU is faster than the program, its waits for the next kernel are part of the time.
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
        """Nanoseconds so far; waits until the GPU has reached the last event."""
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
