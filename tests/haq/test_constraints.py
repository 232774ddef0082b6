from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.constraints import Constraint, parse_constraint
from haq.errors import ConstraintError
from haq.metrics import METRICS, format_cost


@pytest.mark.parametrize(
    ("text", "metric", "limit"),
    [
        ("latency=10ms", "latency", 10.0),
        ("latency<=0.5s", "latency", 500.0),
        (" latency = 250 us ", "latency", 0.25),
        ("latency=250µs", "latency", 0.25),
        ("energy<=3mJ", "energy", 3.0),
        ("energy=1e-3J", "energy", 1.0),
        ("size=200kB", "size", 200_000.0),
        ("size=512KiB", "size", 524_288.0),
        ("size=64B", "size", 64.0),
        ("bops=2G", "bops", 2e9),
        ("bops=1000", "bops", 1000.0),
    ],
)
def test_units_become_the_kept_unit(text: str, metric: str, limit: float) -> None:
    constraint = parse_constraint(text)
    assert (constraint.metric, constraint.relative) == (metric, False)
    assert constraint.limit == pytest.approx(limit)


def test_percentages_are_of_the_uniform_8_bit_network() -> None:
    constraint = parse_constraint("latency=60%")
    assert constraint == Constraint("latency", 0.6, relative=True)
    assert constraint.resolve(5.0) == Constraint("latency", 3.0)
    assert str(constraint) == "latency ≤ 0.6 of uniform 8-bit"


def test_an_absolute_constraint_resolves_to_itself() -> None:
    constraint = parse_constraint("size=1MB")
    assert constraint.resolve(5.0) is constraint
    assert (constraint.field, str(constraint)) == ("size_bytes", "size ≤ 1.00 MB")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read constraint"),
        ("latency", "cannot read constraint"),
        ("latency>=10ms", "cannot read constraint"),
        ("latency=ms", "cannot read constraint"),
        ("latency=1 0ms", "cannot read constraint"),
        ("latency=nanms", "cannot read constraint"),
        ("latency=1.2.3ms", "cannot read the number '1.2.3'"),
        ("latancy=10ms", "unknown constraint 'latancy' (did you mean 'latency'?)"),
        ("colour=10ms", "known: latency, energy, size, ram, bops, bits"),
        ("latency=10", "no unit in constraint"),
        ("latency=10kB", "unknown unit 'kB' in constraint 'latency=10kB'; latency takes ms, s, us, µs, or %"),
        ("bits=2.5MB", "unknown unit 'MB' in constraint 'bits=2.5MB'; bits takes no unit, or %"),
        ("bits=0", "the limit must be a positive number"),
        ("latency=0ms", "the limit must be a positive number"),
        ("latency=-1ms", "the limit must be a positive number"),
        ("latency=1e999ms", "the limit must be a positive number"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ConstraintError, match=re.escape(message)):
        parse_constraint(text)


@given(st.data(), st.sampled_from(sorted(METRICS)), st.floats(1e-6, 1e9))
def test_any_positive_number_and_unit_is_read(data: st.DataObject, metric: str, number: float) -> None:
    unit, factor = data.draw(st.sampled_from(sorted(METRICS[metric].units.items())))
    assert parse_constraint(f"{metric}={number!r}{unit}").limit == pytest.approx(number * factor)


@given(st.text(max_size=30))
def test_no_text_breaks_the_parser(text: str) -> None:
    with suppress(ConstraintError):
        parse_constraint(text)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("latency_ms", 9.876, "9.88 ms"),
        ("latency_ms", 98.76, "98.8 ms"),
        ("latency_ms", 1234.0, "1.23 s"),
        ("latency_ms", 0.0123, "12.3 µs"),
        ("energy_mj", 0.5, "500 µJ"),
        ("size_bytes", 45_300, "45.3 kB"),
        ("size_bytes", 12, "12.0 B"),
        ("bops", 2.5e9, "2.50 Gbops"),
        ("bops", 7.0, "7.00 bops"),
        ("bits_per_weight", 2.5, "2.50 bits"),
        ("bits_per_weight", 32.0, "32.0 bits"),
        ("latency_ms", None, "–"),
    ],
)
def test_costs_are_formatted_for_people(field: str, value: float | None, text: str) -> None:
    assert format_cost(field, value) == text


@given(st.sampled_from(sorted(METRICS)), st.floats(1e-2, 1e12))
def test_formatting_keeps_three_digits(metric: str, value: float) -> None:
    field = METRICS[metric].field
    number, _, unit = format_cost(field, value).partition(" ")
    units = {f"{key}bops": factor for key, factor in METRICS["bops"].units.items()}
    counted = {"bops": {**units, "bops": 1.0}, "bits": {"bits": 1.0}}  # what has no unit is shown with its name
    factor = counted.get(metric, METRICS[metric].units)[unit]
    assert float(number) * factor == pytest.approx(value, rel=0.006, abs=0.006)
