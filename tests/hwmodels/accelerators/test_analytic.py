"""What every analytic model must hold, whatever the hardware."""

import math
import time
from collections.abc import Sequence
from dataclasses import astuple

import pytest

from haq.errors import HardwareError
from haq.hwmodels import bops, get_hardware, list_hardware, size_bytes
from haq.hwmodels.hardware import listed_pairs
from haq.layers import LayerSpec
from haq.policy import LayerBits
from tests.hwmodels.conftest import MakeLayer

NAMES = list_hardware()
PINNED = LayerBits(8, 8)


@pytest.fixture(scope="module")
def shapes(make_layer: MakeLayer) -> Sequence[LayerSpec]:
    return [
        make_layer("stem", 3, 16, 3, 32),
        make_layer("conv", 32, 48, 3, 14),
        make_layer("pointwise", 24, 144, 1, 28),
        make_layer("depthwise", 96, 96, 3, 14, groups=96),
        make_layer("grouped", 32, 64, 3, 7, groups=4),
        make_layer("fc", 64, 10, 1, 1),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_costs_are_positive_and_plain(name, shapes):
    hardware = get_hardware(name)
    for layer in shapes:
        for bits in hardware.pairs:
            cost = hardware.cost(layer, bits, batch=2)
            assert all(math.isfinite(value) and value >= 0 for value in (*cost.values.values(), *astuple(cost)[1:]))
            assert min(cost["latency_ms"], cost["energy_mj"], cost.compute_ms, cost.memory_ms, cost.memory_bytes) > 0
            assert max(cost.compute_ms, cost.memory_ms) <= cost["latency_ms"]
            assert (cost["size_bytes"], cost["bops"]) == (size_bytes(layer, bits), bops(layer, bits))


@pytest.mark.parametrize("name", NAMES)
def test_no_layer_is_above_the_roof(name, shapes):
    hardware = get_hardware(name)
    for layer in shapes:
        for bits in hardware.pairs:
            cost, macs = hardware.cost(layer, bits, batch=2), 2 * layer.macs
            attained = macs / (cost["latency_ms"] * 1e-3)
            moved = min(cost.memory_bytes, cost.memory_ms * 1e-3 * hardware.bytes_per_second)
            roof = min(hardware.macs_per_second(bits), hardware.bytes_per_second * macs / moved)
            assert attained <= roof * (1 + 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_listed_pairs_run_and_pinned_layers_are_among_them(name, make_layer):
    hardware = get_hardware(name)
    assert PINNED in hardware.pairs
    for bits in (LayerBits(w, a) for w in (None, 1, 3, 8, 16) for a in (None, 1, 3, 8, 16)):
        if bits not in hardware.pairs:
            with pytest.raises(HardwareError) as error:
                hardware.cost(make_layer("conv1"), bits)
            assert f"hardware {name!r} runs {listed_pairs(hardware.pairs)}" in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_size_follows_the_weights_and_working_memory_does_not(name, shapes):
    hardware = get_hardware(name)
    for layer in shapes:
        costs = [hardware.cost(layer, bits) for bits in hardware.pairs]  # ascending
        assert [cost["size_bytes"] for cost in costs] == sorted(cost["size_bytes"] for cost in costs)
        assert len({cost.values.get("buffer_bytes") for cost in costs}) == 1


def test_a_table_for_resnet50_takes_less_than_a_second(make_layer):
    """54 layers at 64 pairs of widths; the network of He et al. 2015, arXiv:1512.03385, table 1."""
    layers = [make_layer("conv1", 3, 64, 7, 112)]
    channels, size = 64, 56
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers.append(make_layer("a", channels, width, 1, size))
            layers.append(make_layer("b", width, width, 3, size))
            layers.append(make_layer("c", width, 4 * width, 1, size))
            if block == 0:
                layers.append(make_layer("d", channels, 4 * width, 1, size))
            channels = 4 * width
        size //= 2
    layers.append(make_layer("fc", channels, 1000, 1, 1))
    assert len(layers) == 54
    for name in ("edge", "cloud", "bitfusion"):
        hardware = get_hardware(name)
        calls = [(layer, bits) for layer in layers for bits in hardware.pairs]
        start = time.perf_counter()
        for layer, bits in calls:
            hardware.cost(layer, bits)
        assert time.perf_counter() - start < 1
