from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import HardwareError
from haq.hwmodels import Bismo, Hardware, get_hardware
from haq.layers import LayerSpec, trace
from haq.models import get_model
from haq.policy import LayerBits

WIDTHS = st.integers(1, 8)

# Table of uniform widths 1 to 8, relative to 8 bits, that HAQ (arXiv:1811.08886) published for MobileNetV2 at 224×224
# on its cloud accelerator, batch 16
HAQ_CURVE = (0.0867, 0.178, 0.280, 0.397, 0.528, 0.673, 0.830, 1.0)


@pytest.fixture(scope="module")
def edge() -> Bismo:
    hardware = get_hardware("edge")
    assert isinstance(hardware, Bismo)
    return hardware


@pytest.fixture(scope="module")
def cloud() -> Hardware:
    return get_hardware("cloud")


@pytest.fixture(scope="module")
def mobilenet() -> Sequence[LayerSpec]:
    return trace(get_model("mobilenet-v2"), torch.zeros(1, 3, 224, 224))


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
    assert cost["latency_ms"] == pytest.approx(milliseconds(prologue + execute + epilogue))
    # 2 · 8 · 256 · 8 = 32 768 operations a cycle, 1.4 of them per pJ; 20 pJ for each bit
    assert cost["energy_mj"] == pytest.approx((execute * 32768 / 1.4 + (fetched + written) * 20) * 1e-9)


def test_fetch_bound_layer_by_hand(edge, make_layer):
    layer = make_layer(c_in=64, c_out=30, kernel=3, size=5)
    fetch = 768 * (30 * 2 + 50 * 3) / 64  # 2520 cycles; execute takes 4 · 7 · 3 · 2 · 3 = 504, result 750
    cost = edge.cost(layer, LayerBits(2, 3), batch=2)
    assert cost["latency_ms"] == pytest.approx(milliseconds(64 + fetch + 32))


def test_result_bound_layer_by_hand(edge, make_layer):
    layer = make_layer(c_in=16, c_out=96, kernel=1, size=10)
    result = 96 * 100 * 32 / 64  # 4800 cycles; fetch takes 256 · (96 + 100) / 64 = 784, execute 12 · 13 = 156
    assert edge.cost(layer, LayerBits(1, 1), batch=1)["latency_ms"] == pytest.approx(milliseconds(64 + result + 32))


def test_groups_are_products_of_their_own(edge, make_layer):
    layer = make_layer(c_in=64, c_out=32, kernel=3, size=10, groups=4)
    # each group: M = 8, K = 16 · 9 = 144 → 256, N = 100; fetch 256 · (8 · 4 + 100 · 4) / 64 = 1728 cycles, above
    # execute 1 · 13 · 1 · 16 = 208 and result 8 · 100 · 32 / 64 = 400
    assert edge.cost(layer, LayerBits(4, 4), batch=1)["latency_ms"] == pytest.approx(milliseconds(64 + 4 * 1728 + 32))


def test_small_groups_share_a_product(edge, make_layer):
    layer = make_layer(c_in=60, c_out=60, kernel=3, size=10, groups=60)
    # 8 channels fill the rows and take 72 of 256 inputs, so 60 channels make 8 products of M = 8, N = 100; fetch
    # 256 · (8 · 4 + 100 · 8) / 64 = 3328 cycles, above execute 13 · 32 = 416; results 60 · 100 · 32 / 64 = 3000 in all
    assert edge.cost(layer, LayerBits(4, 8), batch=1)["latency_ms"] == pytest.approx(milliseconds(64 + 8 * 3328 + 32))


def test_what_the_buffers_do_not_hold_is_fetched_again(edge, make_layer):
    layer = make_layer(c_in=1024, c_out=100, kernel=1, size=20)
    hardware = replace(edge, buffer_entries=160)
    # 4 steps of 8 bits take 32 words, so a buffer holds 5 tiles of 8, of 13 tiles of rows and 50 of columns
    weights, activations = 1024 * 100 * 8, 1024 * 400 * 8
    once = edge.cost(layer, LayerBits(8, 8), batch=1)
    assert once.memory_ms == pytest.approx(milliseconds((weights + activations) / 64))
    again = hardware.cost(layer, LayerBits(8, 8), batch=1)
    assert again.memory_ms == pytest.approx(
        milliseconds(min(weights + 3 * activations, activations + 10 * weights) / 64)
    )
    never = replace(edge, buffer_entries=31).cost(layer, LayerBits(8, 8), batch=1)
    assert never.memory_ms == pytest.approx(milliseconds((50 * weights + 13 * activations) / 64))


def test_requantized_results_are_as_wide_as_activations(cloud, make_layer):
    layer = make_layer(c_in=16, c_out=96, kernel=1, size=10)
    cost = cloud.cost(layer, LayerBits(8, 4), batch=1)
    assert cost.memory_bytes == (256 * (96 * 8 + 100 * 4) + 96 * 100 * 4) / 8


@pytest.mark.parametrize("bits", [LayerBits(4, 4), LayerBits(8, 8)])
def test_depthwise_waits_for_memory(edge, make_layer, bits):
    layer = make_layer(c_in=96, c_out=96, kernel=3, size=28, groups=96)
    latency = edge.cost(layer, bits)["latency_ms"]
    wider_array, wider_port = replace(edge, columns=16), replace(edge, dram_bits_per_cycle=128)
    assert wider_array.cost(layer, bits)["latency_ms"] == pytest.approx(latency, rel=0.01)
    assert wider_port.cost(layer, bits)["latency_ms"] == pytest.approx(latency / 2, rel=0.01)


@pytest.mark.parametrize("name", ["edge", "cloud", "ultra96"])
@pytest.mark.parametrize(("w", "a"), [(8, 2), (4, 4), (6, 8)])
def test_compute_bound_layers_scale_with_the_product_of_widths(make_layer, name, w, a):
    layer, hardware = make_layer(c_in=2304, c_out=640, kernel=1, size=64), get_hardware(name)
    full, cost = (hardware.cost(layer, bits) for bits in (LayerBits(8, 8), LayerBits(w, a)))
    assert full.bound == cost.bound == "compute"
    assert cost["latency_ms"] / full["latency_ms"] == pytest.approx(w * a / 64, rel=0.01)


@pytest.mark.parametrize("name", ["edge", "cloud", "ultra96"])
def test_memory_bound_layers_scale_with_the_side_that_binds(make_layer, name):
    hardware = get_hardware(name)
    heavy = make_layer(c_in=2048, c_out=1000, kernel=1, size=1)  # weights
    wide = make_layer(c_in=256, c_out=1, kernel=1, size=200)  # activations

    def latency(layer: LayerSpec, w: int, a: int) -> float:
        cost = hardware.cost(layer, LayerBits(w, a), batch=1)
        assert cost.bound == "memory"
        return cost["latency_ms"]

    assert latency(heavy, 4, 8) / latency(heavy, 8, 8) == pytest.approx(0.5, rel=0.02)
    assert latency(heavy, 8, 4) / latency(heavy, 8, 8) == pytest.approx(1, rel=0.02)
    assert latency(wide, 8, 4) / latency(wide, 8, 8) == pytest.approx(0.5, rel=0.02)
    assert latency(wide, 4, 8) / latency(wide, 8, 8) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize(("name", "tops"), [("edge", 6.55), ("cloud", 26.2), ("ultra96", 15.4)])
def test_published_peaks(name, tops):
    """Of binary operations: 6.5 in arXiv:1806.08862 and 15.4 in arXiv:1901.00370."""
    assert 2 * get_hardware(name).macs_per_second(LayerBits(1, 1)) / 1e12 == pytest.approx(tops, rel=3e-3)


def test_large_binary_product_reaches_the_published_peak(edge, make_layer):
    # BISMO, arXiv:1806.08862: 6.5 TOPS on the PYNQ-Z1; 2 · 8 · 256 · 8 · 200 MHz = 6.5536e12. With 8192 inputs and 256
    # rows, buffers, ports and array are all exactly busy
    layer = make_layer(c_in=8192, c_out=256, kernel=1, size=256)
    cost = edge.cost(layer, LayerBits(1, 1), batch=1)
    assert 2 * layer.macs / (cost["latency_ms"] * 1e-3) == pytest.approx(6.5536e12, rel=0.01)


def test_published_efficiency(edge, make_layer):
    # BISMO, arXiv:1806.08862: 1.4 binary TOPS/W; DRAM adds little to a product of wide operands
    layer = make_layer(c_in=1024, c_out=512, kernel=1, size=64)
    cost = edge.cost(layer, LayerBits(8, 8), batch=1)
    assert 2 * 64 * layer.macs / (cost["energy_mj"] * 1e-3) == pytest.approx(1.4e12, rel=0.02)


def test_mobilenet_on_cloud_has_the_curve_that_haq_published(cloud, mobilenet):
    latency = [
        sum(cloud.cost(layer, LayerBits(k, k), batch=16)["latency_ms"] for layer in mobilenet) for k in range(1, 9)
    ]
    assert np.array(latency) / latency[-1] == pytest.approx(np.array(HAQ_CURVE), rel=0.01)


@pytest.mark.parametrize(
    ("bits", "slower_on_edge", "slower_on_cloud"),
    [
        # A depthwise layer against a pointwise one: the rows of edge's array join 8 channels, those of cloud's 16
        (LayerBits(8, 8), "features.7.conv.1.0", "features.12.conv.0.0"),
        # Expansion against projection: edge writes 32-bit accumulators, so what has many outputs is slow
        (LayerBits(2, 2), "features.3.conv.0.0", "features.1.conv.1"),
    ],
)
def test_edge_and_cloud_rank_layers_differently(edge, cloud, mobilenet, bits, slower_on_edge, slower_on_cloud):
    layers = {layer.name: layer for layer in mobilenet}
    for hardware, slower, faster in [(edge, slower_on_edge, slower_on_cloud), (cloud, slower_on_cloud, slower_on_edge)]:
        costs = [hardware.cost(layers[name], bits, batch=16)["latency_ms"] for name in (slower, faster)]
        assert costs[0] > 1.3 * costs[1]


@given(
    w=WIDTHS,
    a=WIDTHS,
    batch=st.integers(1, 32),
    groups=st.sampled_from([1, 4, 32]),
    width=st.sampled_from([1, 5, 40]),
    entries=st.integers(1, 1024),
)
def test_costs_never_fall_with_widths_or_batch(edge, make_layer, w, a, batch, groups, width, entries):
    layer = make_layer(c_in=32 * width, c_out=32 * width, groups=groups)
    edge = replace(edge, buffer_entries=entries)
    cost = edge.cost(layer, LayerBits(w, a), batch)
    for bits, more in [(LayerBits(min(w + 1, 8), a), 0), (LayerBits(w, min(a + 1, 8)), 0), (LayerBits(w, a), 1)]:
        dearer = edge.cost(layer, bits, batch + more)
        assert dearer["latency_ms"] >= cost["latency_ms"] > 0
        assert dearer["energy_mj"] >= cost["energy_mj"] > 0


@given(w=WIDTHS, a=WIDTHS, c_in=st.integers(1, 300), c_out=st.integers(1, 100), kernel=st.sampled_from([1, 3]))
def test_cloud_is_faster_than_edge(edge, make_layer, w, a, c_in, c_out, kernel):
    layer, bits = make_layer(c_in=c_in, c_out=c_out, kernel=kernel), LayerBits(w, a)
    assert get_hardware("cloud").cost(layer, bits)["latency_ms"] < edge.cost(layer, bits)["latency_ms"]


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
