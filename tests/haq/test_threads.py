import threading
import time

import pytest
import torch

from haq.threads import in_threads, one_thread


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number * number

    assert in_threads(slow_first, range(20)) == [number * number for number in range(20)]
    assert in_threads(slow_first, []) == []


def test_every_thread_has_one_core_and_the_caller_its_own_again() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert set(in_threads(lambda number: torch.get_num_threads(), range(8))) == {1}
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            in_threads(lambda number: 1 // number, [2, 1, 0])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_ends_what_has_not_begun() -> None:
    begun = []

    def fail(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("the first")
        time.sleep(0.005)

    with pytest.raises(ValueError, match="the first"):
        in_threads(fail, range(2000))
    assert len(begun) < 2000
    assert threading.active_count() < 100


def test_it_runs_inside_one_thread() -> None:
    with one_thread():
        assert in_threads(lambda number: number + 1, [1]) == [2]
        assert torch.get_num_threads() == 1
