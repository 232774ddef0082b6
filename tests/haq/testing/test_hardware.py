"""The battery for cost models accepts ours, and names what others do wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from haq.hwmodels import Bismo, LayerCost, get_hardware, list_hardware
from haq.policy import LayerBits
from haq.testing import check_hardware


@pytest.mark.parametrize("name", list_hardware())
def test_hardware_that_ships_with_haq_passes(name: str) -> None:
    check_hardware(get_hardware(name))


class Changed:
    """`edge` with one thing wrong."""

    def __init__(self, **changed: Any) -> None:
        self._edge, self._changed = get_hardware("edge"), changed

    def __getattr__(self, name: str) -> Any:
        return self._changed.get(name, getattr(self._edge, name))

    def cost(self, layer: Any, bits: LayerBits, batch: int = 16) -> LayerCost:
        found = self._edge.cost(layer, bits, batch)
        return replace(found, values={**found.values, **self._changed.get("values", {})})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": ""}, "a cost model needs a name"),
        ({"pairs": ()}, "pairs is empty"),
        ({"pairs": (LayerBits(4, 4),)}, "8/8 bits must be legal"),
        ({"values": {"latency_ms": float("nan")}}, "latency_ms=nan must be finite"),
        ({"values": {"latency_ms": -1.0}}, "latency_ms=-1.0 must be finite and at least 0"),
        ({"values": {"energy_mj": 0.0}}, "energy_mj must be more than 0"),
        ({"values": {"latency_ms": 1e-12}}, "latency_ms is less than the time for arithmetic or memory traffic alone"),
        ({"values": {"size_bytes": 7.0}}, "size_bytes must be .*, as on all hardware"),
        ({"pairs": (LayerBits(2, 2), LayerBits(8, 8))}, "bits are not in pairs, but `cost` accepts them; begin"),
    ],
)
def test_wrong_cost_models_are_found_out(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_hardware(Changed(**changed))


def test_pairs_are_ascending() -> None:
    edge = get_hardware("edge")
    assert isinstance(edge, Bismo)
    with pytest.raises(AssertionError, match="pairs must be ascending, weights first"):
        check_hardware(replace(edge, pairs=tuple(reversed(edge.pairs))))
