import threading

import pytest

from haq.search.tune.ray_progress import reporting


def test_reports_come_first_then_the_result() -> None:
    went_on = threading.Event()

    def work(report):
        report(1)
        assert went_on.wait(10), "the first report must arrive before the work ends"
        report(2)
        return "done"

    stream = reporting(work)
    assert next(stream) == 1
    went_on.set()
    assert next(stream) == 2
    with pytest.raises(StopIteration) as ended:
        next(stream)
    assert ended.value.value == "done"


def test_an_error_in_the_work_is_raised() -> None:
    def work(report):
        report(7)
        raise ValueError("no")

    stream = reporting(work)
    assert next(stream) == 7
    with pytest.raises(ValueError, match="no"):
        next(stream)
