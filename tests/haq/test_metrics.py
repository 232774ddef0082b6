from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from haq.errors import ConfigError
from haq.metrics import METRICS, Metric, layer_fields, metric_of


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METRICS, "_added", {})
        yield


def test_the_built_in_metrics_are_the_fields_of_tables() -> None:
    assert list(METRICS) == ["latency", "energy", "size", "ram", "bops", "bits"]
    assert layer_fields() == ("latency_ms", "energy_mj", "size_bytes", "bops", "bits_per_weight", "buffer_bytes")
    assert [metric.field for metric in METRICS.values() if metric.headline] == ["latency_ms", "energy_mj", "size_bytes"]
    assert metric_of("ram_bytes") is METRICS["ram"]


def test_scales_and_titles_come_from_units_and_names() -> None:
    metric = Metric("dollars", "dollars", {"USD": 1.0, "cent": 0.01, "ct": 0.01})
    assert METRICS.register("dollars", metric) is metric
    assert METRICS.register(metric.name, metric) is metric
    assert (metric.title, metric.kept_unit) == ("Dollars", "USD")
    assert [metric.format(value) for value in (12.0, 0.5, None)] == ["12.0 USD", "50.0 cent", "–"]
    assert "dollars" in layer_fields()
    assert Metric("grade", "grade", {"": 1.0}).format(3) == "3.00 grade"


@pytest.mark.parametrize("clash", [{"name": "latency"}, {"field": "latency_ms"}, {"field": "buffer_bytes"}])
def test_names_and_fields_are_unique(clash: dict[str, Any]) -> None:
    metric = Metric(**{"name": "own", "field": "own", "units": {"": 1.0}, **clash})
    with pytest.raises(ConfigError, match="is known already; choose another name and field"):
        METRICS.register(metric.name, metric)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "own cost"}, "name='own cost' must be letters, digits and underscores"),
        ({"field": "<b>"}, "field='<b>' must be letters"),
        ({"units": {"2m": 1.0}}, "unit '2m'=1.0: give a word and a positive number"),
        ({"units": {"m": 0.0}}, "unit 'm'=0.0"),
        ({"units": {"km": 1e3}}, "no unit is 1; name the unit that values of 'own' have"),
        ({"combine": "product"}, "combine='product'; use sum or mean or peak"),
        ({"direction": "up"}, "direction='up'; use min or max"),
    ],
)
def test_a_wrong_metric_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Metric(**{"name": "own", "field": "own", "units": {"": 1.0}, **wrong})
    assert message in str(error.value)
