import time
from typing import Any

import pytest
import torch

from haq.hwmodels.kernels.stopwatch import Stopwatch, StreamStopwatch, get_stopwatch

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_blocks_add_up() -> None:
    watch = get_stopwatch("cpu")
    for _ in range(2):
        with watch:
            time.sleep(0.002)
        time.sleep(0.01)
    assert 4e6 <= watch.elapsed_ns < 1e7
    assert watch.elapsed_ns == watch.elapsed_ns
    watch.reset()
    assert watch.elapsed_ns == 0


class Gpu:
    """A queue whose events pass only when somebody waits for them, at the milliseconds given."""

    def __init__(self, *times: float) -> None:
        self.times, self.recorded, self.waited = iter(times), 0, 0

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        gpu = self

        class Event:
            time: float

            def record(self) -> None:
                self.time, self.number = next(gpu.times), gpu.recorded
                gpu.recorded += 1

            def synchronize(self) -> None:
                gpu.waited = self.number + 1

            def elapsed_time(self, end: "Event") -> float:
                assert gpu.waited > end.number, "not there yet"
                return end.time - self.time

        return Event()


def test_events_are_read_when_the_gpu_has_got_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(1.0, 1.5, 4.0, 4.25, 6.0, 7.0)
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    watch = get_stopwatch("cuda")
    assert watch.elapsed_ns == 0
    for _ in range(2):
        with watch:
            pass
    assert gpu.waited == 0
    assert watch.elapsed_ns == watch.elapsed_ns == 750_000
    with watch:
        pass
    assert watch.elapsed_ns == 1_750_000
    watch.reset()
    assert watch.elapsed_ns == 0


@needs_cuda
def test_a_gpu_is_not_waited_for() -> None:
    watch, program = StreamStopwatch(), Stopwatch()
    x = torch.rand(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    with program, watch:
        for _ in range(50):
            x = x @ x
    queued = program.elapsed_ns
    assert watch.elapsed_ns > queued
