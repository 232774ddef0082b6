from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.hwmodels import get_hardware
from haq.hwmodels.accelerators.cortex_m import CortexM
from haq.policy import LayerBits

WIDTHS = st.sampled_from([2, 4, 8])


def device(name: str) -> CortexM:
    hardware = get_hardware(name)
    assert isinstance(hardware, CortexM)
    return hardware


@pytest.fixture(scope="module")
def m4() -> CortexM:
    return device("mcu-m4")


@pytest.fixture(scope="module")
def m7() -> CortexM:
    return device("mcu-m7")


def test_convolution_by_hand(m7, make_layer):
    layer = make_layer(c_in=16, c_out=12, kernel=3, size=5)
    # K = 144, N = 25 → 13 pairs of positions; 12 · 144 / 2 bytes of weights fit in the cache of 16 KiB
    cycles = 12 * 144 * 25 * 0.85 + 12 * 144 * 13 * 1.28 + 25 * 144 * 1.49 + 12 * 25 * 8.5
    flash = 12 * 144 / 2 / 2.3
    cost = m7.cost(layer, LayerBits(4, 8), batch=3)
    assert cost.compute_ms == pytest.approx(3 * cycles / 400e3)
    assert cost.memory_ms == pytest.approx(3 * flash / 400e3)
    assert cost["latency_ms"] == pytest.approx(cost.compute_ms + cost.memory_ms)
    assert cost["energy_mj"] == pytest.approx(cost["latency_ms"] * 0.370)
    assert cost["buffer_bytes"] == 2 * 16 * 9 * 2  # two positions of 16-bit inputs


def test_depthwise_by_hand(m4, make_layer):
    layer = make_layer(c_in=16, c_out=16, kernel=3, size=5, groups=16)
    cycles = 16 * 9 * 25 * (3.1 + 1.56) + 16 * 9 * 25 * 2.75 + 16 * 25 * 10
    cost = m4.cost(layer, LayerBits(2, 4), batch=1)
    assert cost.compute_ms == pytest.approx(cycles / 180e3)
    assert cost["buffer_bytes"] == 16 * 9


def test_a_linear_layer_unpacks_weights_for_one_position(m4, make_layer):
    layer = make_layer(c_in=64, c_out=10, kernel=1, size=1)
    cost = m4.cost(layer, LayerBits(8, 8), batch=1)
    assert cost.compute_ms == pytest.approx((640 * (1.1 + 1.0) + 64 * 2 + 10 * 10) / 180e3)
    assert cost.memory_bytes == 640
    assert cost["buffer_bytes"] == 64 * 2


def test_weights_past_the_cache_are_read_for_every_two_positions(m7, make_layer):
    layer = make_layer(c_in=64, c_out=64, kernel=3, size=8)
    assert m7.cost(layer, LayerBits(8, 8), batch=1).memory_bytes == 32 * layer.params
    assert m7.cost(layer, LayerBits(2, 8), batch=1).memory_bytes == layer.params / 4


@pytest.mark.parametrize(("c_out", "size", "milliseconds"), [(32, 16, 42.8), (64, 8, 22.6)])
def test_published_convolutions(m7, make_layer, c_out, size, milliseconds):
    """CMSIS-NN, arXiv:1801.06601, CIFAR-10 network on a Cortex-M7 at 216 MHz: 5×5 kernels, 32 input channels."""
    layer = make_layer(c_in=32, c_out=c_out, kernel=5, size=size)
    cost = replace(m7, clock_mhz=216).cost(layer, LayerBits(8, 8), batch=1)
    assert cost["latency_ms"] == pytest.approx(milliseconds, rel=0.05)


@given(w=WIDTHS, a=WIDTHS, c_in=st.integers(1, 100), c_out=st.integers(1, 100), size=st.integers(1, 9))
def test_fewer_bits_save_flash_and_not_time(m4, m7, make_layer, w, a, c_in, c_out, size):
    layer = make_layer(c_in=c_in, c_out=c_out, size=size)
    for hardware in (m4, m7):
        full, cost = hardware.cost(layer, LayerBits(8, 8)), hardware.cost(layer, LayerBits(w, a))
        assert cost.compute_ms >= full.compute_ms > 0
        assert 0 < cost.memory_bytes <= full.memory_bytes
        assert 0 < cost["size_bytes"] <= full["size_bytes"]
        assert cost["buffer_bytes"] == full["buffer_bytes"]


@given(c_in=st.integers(1, 100), size=st.integers(1, 9), batch=st.integers(1, 20), w=WIDTHS)
def test_costs_are_those_of_one_sample_after_another(m4, make_layer, c_in, size, batch, w):
    layer = make_layer(c_in=c_in, size=size)
    one, many = m4.cost(layer, LayerBits(w, 8), 1), m4.cost(layer, LayerBits(w, 8), batch)
    assert many["latency_ms"] == pytest.approx(batch * one["latency_ms"])
    assert many["energy_mj"] == pytest.approx(batch * one["energy_mj"])


def test_limits(m4, m7):
    assert m4.limits == {"size": 512 * 1024, "ram": 128 * 1024}
    assert m7.limits == {"size": 2 * 1024**2, "ram": 512 * 1024}
