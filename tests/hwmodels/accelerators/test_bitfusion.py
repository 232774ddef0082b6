from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.hwmodels import get_hardware
from haq.hwmodels.accelerators.bitfusion import BitFusion
from haq.policy import LayerBits

WIDTHS = (2, 4, 8, 16)


@pytest.fixture(scope="module")
def fusion() -> BitFusion:
    hardware = get_hardware("bitfusion")
    assert isinstance(hardware, BitFusion)
    return hardware


@pytest.mark.parametrize(
    ("w", "a", "products"),
    [(8, 8, 1), (4, 8, 2), (8, 4, 2), (2, 8, 4), (4, 4, 4), (2, 4, 8), (2, 2, 16), (16, 8, 1 / 2), (16, 16, 1 / 4)],
)
def test_published_products_of_a_fusion_unit(fusion, w, a, products):
    """Sharma et al., arXiv:1712.01507: 16 bricks make these in a cycle."""
    assert fusion.macs_per_second(LayerBits(w, a)) == pytest.approx(512 * products * 500e6)


def test_compute_bound_layer_by_hand(fusion, make_layer):
    layer = make_layer(c_in=64, c_out=40, kernel=3, size=8)
    # M = 40 → 2 passes of 32 columns; K = 576; at 8 bits 16 inputs a cycle → 36 steps; N = 2 · 64
    cycles = 2 * 36 * 128
    # Weights 64 · 40 · 9 · 8 bits fit in 64 KiB; inputs 64 · 64 · 2 values, outputs 40 · 64 · 2
    dram = (64 * 40 * 9 + 64 * 64 * 2 + 40 * 64 * 2) * 8
    cost = fusion.cost(layer, LayerBits(8, 8), batch=2)
    assert (cost.bound, cost["latency_ms"]) == ("compute", pytest.approx(cycles / 500e3))
    assert cost.memory_ms == pytest.approx(dram / 192 / 500e3)
    assert cost.memory_bytes == dram / 8
    macs = 2 * layer.macs
    energy = (
        cycles * 512 * 0.578 + macs * 8 * 0.0214 + 128 * 576 * 2 * 8 * 0.0595 + 128 * 40 * 36 * 32 * 0.106 + dram * 15
    )
    assert cost["energy_mj"] == pytest.approx(energy * 1e-9)


def test_fewer_bits_take_fewer_steps(fusion, make_layer):
    layer = make_layer(c_in=64, c_out=32, kernel=3, size=8)
    # 576 inputs, 64 or 256 a cycle: 9 or 3 steps
    for bits, steps in [(LayerBits(4, 4), 9), (LayerBits(2, 2), 3), (LayerBits(16, 8), 72), (LayerBits(16, 16), 144)]:
        assert fusion.cost(layer, bits, batch=1).compute_ms == pytest.approx(steps * 64 / 500e3)


@pytest.mark.parametrize(("w", "a"), [(2, 8), (4, 4), (16, 8), (16, 16), (4, 16)])
def test_compute_bound_layers_scale_with_the_product_of_widths(fusion, make_layer, w, a):
    layer = make_layer(c_in=512, c_out=256, kernel=3, size=32)
    full, cost = (fusion.cost(layer, bits) for bits in (LayerBits(8, 8), LayerBits(w, a)))
    assert full.bound == cost.bound == "compute"
    assert cost["latency_ms"] / full["latency_ms"] == pytest.approx(w * a / 64)


def test_memory_bound_layers_scale_with_the_side_that_binds(fusion, make_layer):
    heavy = make_layer(c_in=2048, c_out=1000, kernel=1, size=1)
    costs = {(w, a): fusion.cost(heavy, LayerBits(w, a), batch=1) for w in (2, 4) for a in (2, 4)}
    assert {cost.bound for cost in costs.values()} == {"memory"}
    assert costs[2, 4]["latency_ms"] / costs[4, 4]["latency_ms"] == pytest.approx(0.5, rel=0.01)
    assert costs[4, 2]["latency_ms"] / costs[4, 4]["latency_ms"] == pytest.approx(1, rel=0.01)


def test_depthwise_leaves_most_units_idle(fusion, make_layer):
    layer = make_layer(c_in=64, c_out=64, kernel=3, size=8, groups=64)
    # At 8 bits 16 rows take one channel's 9 inputs; at 2 bits their 256 inputs take 28 channels', in 28 columns
    assert fusion.cost(layer, LayerBits(8, 8), batch=1).compute_ms == pytest.approx(64 * 64 / 500e3)
    assert fusion.cost(layer, LayerBits(2, 2), batch=1).compute_ms == pytest.approx(3 * 64 / 500e3)


def test_what_the_buffers_do_not_hold_is_read_again(fusion, make_layer):
    layer = make_layer(c_in=256, c_out=300, kernel=1, size=20)
    weights, inputs, outputs = 256 * 300 * 8, 256 * 400 * 8, 300 * 400 * 8
    # 614,400 bits of weights are twice 64 KiB, 819,200 of inputs four times 32 KiB
    cost = fusion.cost(layer, LayerBits(8, 8), batch=1)
    assert cost.memory_bytes * 8 == min(weights + 2 * inputs, inputs + 4 * weights) + outputs
    larger = replace(fusion, input_buffer_bytes=1 << 20)
    assert larger.cost(layer, LayerBits(8, 8), batch=1).memory_bytes * 8 == inputs + weights + outputs


def test_widths_between_are_rounded_up(fusion, make_layer):
    hardware = replace(fusion, pairs=(LayerBits(3, 5), LayerBits(4, 8)))
    costs = [hardware.cost(make_layer(), bits, batch=1) for bits in hardware.pairs]
    assert costs[0]["latency_ms"] == costs[1]["latency_ms"]
    assert costs[0]["energy_mj"] == costs[1]["energy_mj"]


@given(
    w=st.sampled_from(WIDTHS),
    a=st.sampled_from(WIDTHS),
    c_in=st.sampled_from([4, 32, 512]),
    groups=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 20),
)
def test_costs_never_fall_with_widths_or_batch(fusion, make_layer, w, a, c_in, groups, batch):
    layer = make_layer(c_in=c_in, c_out=c_in, groups=c_in if groups == 4 else groups)
    cost = fusion.cost(layer, LayerBits(w, a), batch)
    for bits, more in [(LayerBits(min(2 * w, 16), a), 0), (LayerBits(w, min(2 * a, 16)), 0), (LayerBits(w, a), 1)]:
        dearer = fusion.cost(layer, bits, batch + more)
        assert dearer["latency_ms"] >= cost["latency_ms"] > 0
        assert dearer["energy_mj"] >= cost["energy_mj"] > 0
