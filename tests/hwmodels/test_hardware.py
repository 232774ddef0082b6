"""Pricing one layer, by a cost model of anyone's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from haq.hwmodels import get_hardware, list_hardware
from haq.hwmodels.hardware import price_layer
from haq.layers import LayerSpec

STEP = LayerSpec(
    "rnn.weight_hh_l0", "linear", 64, 256, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1), (1, 1), 64 * 256, 64 * 256, 256
)


@pytest.mark.parametrize("name", list_hardware())
def test_steps_that_follow_each_other_are_no_large_product(name: str) -> None:
    hardware, steps = get_hardware(name), replace(STEP, macs=20 * STEP.macs)
    one, all_steps = (price_layer(hardware, layer, hardware.pairs[-1], 2) for layer in (STEP, steps))
    at_once = price_layer(hardware, replace(steps, in_size=(20, 1), out_size=(20, 1)), hardware.pairs[-1], 2)
    for metric in {"latency_ms", "energy_mj"} & one.values.keys():
        assert all_steps[metric] == pytest.approx(20 * one[metric])
        assert all_steps[metric] >= at_once[metric]
    assert all_steps.bound == one.bound
