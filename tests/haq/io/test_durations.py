import pytest

from haq.errors import ConfigError
from haq.io.durations import format_duration, parse_duration


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), (" 1.5 h ", 5400), ("10m", 600), ("2min", 120)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text, "--time-limit") == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "0", "5 weeks", "1e3", "٣m"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--time-limit .*write a time of more than 0, such as 90s, 10m or 2h"):
        parse_duration(text, "--time-limit")


def test_a_time_is_written_as_people_read_it() -> None:
    assert [format_duration(seconds) for seconds in (5, 90, 600)] == ["5 s", "90 s", "10 min"]
