from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import HardwareError
from haq.hwmodels import Bismo, get_hardware
from haq.policy import LayerBits

WIDTHS = st.integers(1, 8)


@pytest.fixture(scope="module")
def edge() -> Bismo:
    hardware = get_hardware("edge")
    assert isinstance(hardware, Bismo)
    return hardware


def milliseconds(cycles: float) -> float:
    return cycles / 200e6 * 1e3


def test_execute_bound_layer_by_hand(edge, make_layer):
    layer = make_layer(c_in=64, c_out=30, kernel=3, size=5)
    hardware = replace(edge, dram_bits_per_cycle=256)
    # M = 30 → 4 tiles of 8; N = 2 · 25 = 50 → 7 tiles of 8; K = 64 · 9 = 576 → 3 steps of 256, padded to 768
    execute = 4 * 7 * 3 * 8 * 8  # 5376 cycles
    fetched = 768 * (30 * 8 + 50 * 8)  # 491 520 bits, 1920 cycles
    written = 30 * 50 * 32  # 48 000 bits, 750 cycles
    prologue, epilogue = (8 + 8) * 256 / 256, 8 * 8 * 32 / 64  # 16 and 32 cycles
    cost = hardware.cost(layer, LayerBits(8, 8), batch=2)
    assert cost.latency_ms == pytest.approx(milliseconds(prologue + execute + epilogue))
    # 2 · 8 · 256 · 8 = 32 768 operations a cycle, 1.4 of them per pJ; 20 pJ for each bit
    assert cost.energy_mj == pytest.approx((execute * 32768 / 1.4 + (fetched + written) * 20) * 1e-9)


def test_fetch_bound_layer_by_hand(edge, make_layer):
    layer = make_layer(c_in=64, c_out=30, kernel=3, size=5)
    fetch = 768 * (30 * 2 + 50 * 3) / 64  # 2520 cycles; execute takes 4 · 7 · 3 · 2 · 3 = 504, result 750
    cost = edge.cost(layer, LayerBits(2, 3), batch=2)
    assert cost.latency_ms == pytest.approx(milliseconds(64 + fetch + 32))


def test_result_bound_layer_by_hand(edge, make_layer):
    layer = make_layer(c_in=16, c_out=96, kernel=1, size=10)
    result = 96 * 100 * 32 / 64  # 4800 cycles; fetch takes 256 · (96 + 100) / 64 = 784, execute 12 · 13 = 156
    assert edge.cost(layer, LayerBits(1, 1), batch=1).latency_ms == pytest.approx(milliseconds(64 + result + 32))


def test_groups_are_products_of_their_own(edge, make_layer):
    layer = make_layer(c_in=64, c_out=32, kernel=3, size=10, groups=4)
    # each group: M = 8, K = 16 · 9 = 144 → 256, N = 100; fetch 256 · (8 · 4 + 100 · 4) / 64 = 1728 cycles, above
    # execute 1 · 13 · 1 · 16 = 208 and result 8 · 100 · 32 / 64 = 400
    assert edge.cost(layer, LayerBits(4, 4), batch=1).latency_ms == pytest.approx(milliseconds(64 + 4 * 1728 + 32))


@pytest.mark.parametrize("bits", [LayerBits(1, 1), LayerBits(4, 4), LayerBits(8, 8)])
def test_depthwise_waits_for_memory(edge, make_layer, bits):
    layer = make_layer(c_in=96, c_out=96, kernel=3, size=28, groups=96)
    latency = edge.cost(layer, bits).latency_ms
    wider_array, wider_port = replace(edge, columns=16), replace(edge, dram_bits_per_cycle=128)
    assert wider_array.cost(layer, bits).latency_ms == pytest.approx(latency, rel=0.01)
    assert wider_port.cost(layer, bits).latency_ms == pytest.approx(latency / 2, rel=0.01)


def test_large_binary_product_reaches_the_published_peak(edge, make_layer):
    # BISMO, arXiv:1806.08862: 6.5 TOPS on the PYNQ-Z1; 2 · 8 · 256 · 8 · 200 MHz = 6.5536e12
    layer = make_layer(c_in=65536, c_out=1024, kernel=1, size=32)
    cost = edge.cost(layer, LayerBits(1, 1), batch=1)
    operations_per_second = 2 * layer.macs / (cost.latency_ms * 1e-3)
    assert operations_per_second == pytest.approx(6.5536e12, rel=1e-3)
    assert 2 * layer.macs / (cost.energy_mj * 1e-3) == pytest.approx(1.4e12, rel=0.05)  # DRAM adds little


@given(w=WIDTHS, a=WIDTHS, batch=st.integers(1, 32), groups=st.sampled_from([1, 4, 32]))
def test_costs_never_fall_with_widths_or_batch(edge, make_layer, w, a, batch, groups):
    layer = make_layer(c_in=32, c_out=32, groups=groups)
    cost = edge.cost(layer, LayerBits(w, a), batch)
    for bits, more in [(LayerBits(min(w + 1, 8), a), 0), (LayerBits(w, min(a + 1, 8)), 0), (LayerBits(w, a), 1)]:
        dearer = edge.cost(layer, bits, batch + more)
        assert dearer.latency_ms >= cost.latency_ms > 0
        assert dearer.energy_mj >= cost.energy_mj > 0


@given(w=WIDTHS, a=WIDTHS, c_in=st.integers(1, 300), c_out=st.integers(1, 100), kernel=st.sampled_from([1, 3]))
def test_cloud_is_faster_than_edge(edge, make_layer, w, a, c_in, c_out, kernel):
    layer, bits = make_layer(c_in=c_in, c_out=c_out, kernel=kernel), LayerBits(w, a)
    assert get_hardware("cloud").cost(layer, bits).latency_ms < edge.cost(layer, bits).latency_ms


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (LayerBits(None, 8), "float/8"),
        (LayerBits(8, None), "8/float"),
        (LayerBits(16, 8), "16/8"),
    ],
)
def test_widths_it_cannot_multiply_are_refused(edge, make_layer, bits, said):
    with pytest.raises(HardwareError) as error:
        edge.cost(make_layer("conv1"), bits)
    assert f"layer 'conv1' has {said} bits (weights/activations), but hardware 'edge' runs 1-8/1-8" in str(error.value)
