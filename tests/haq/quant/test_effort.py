from haq.quant.effort import MACS_PER_SECOND, affordable


def test_what_is_cheap_is_not_cut() -> None:
    assert affordable(512, 41e6, 20, 16) == 512
    assert affordable(512, 0, 20, 16) == 512


def test_what_is_dear_takes_the_time_that_it_may() -> None:
    assert affordable(512, MACS_PER_SECOND, 20, 16) == 20


def test_at_least_a_few_samples_are_left_if_there_are_any() -> None:
    assert affordable(512, 1e15, 20, 16) == 16
    assert affordable(5, 1e15, 20, 16) == 5
