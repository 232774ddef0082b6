import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import HardwareError
from haq.hwmodels import get_hardware
from haq.hwmodels.accelerators.gpu import Gpu
from haq.policy import LayerBits

LAUNCH_MS = 0.005


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    hardware = get_hardware("gpu-int4")
    assert isinstance(hardware, Gpu)
    return hardware


@pytest.mark.parametrize(("width", "tops"), [(8, 130), (4, 260)])
def test_published_peaks(gpu, width, tops):
    """NVIDIA T4 data sheet."""
    assert 2 * gpu.macs_per_second(LayerBits(width, width)) / 1e12 == pytest.approx(tops, rel=5e-3)


def test_compute_bound_layer_by_hand(gpu, make_layer):
    layer = make_layer(c_in=520, c_out=500, kernel=3, size=28)
    # 500 channels → 8 tiles, 2 · 784 positions → 25: 200 tiles, 5 turns of 40 cores; K = 4680 → 4688, 293 steps of 16
    cost = gpu.cost(layer, LayerBits(8, 8), batch=2)
    assert (cost.bound, cost["latency_ms"]) == ("compute", pytest.approx(LAUNCH_MS + 5 * 64**2 * 4688 / 1024 / 1590e3))
    assert cost["energy_mj"] == pytest.approx(cost["latency_ms"] * 70)


def test_memory_bound_layer_by_hand(gpu, make_layer):
    layer = make_layer(c_in=2048, c_out=1000, kernel=1, size=1)
    cost = gpu.cost(layer, LayerBits(4, 4), batch=1)
    moved = (2048 * 1000 + 2048 + 1000) / 2
    assert (cost.bound, cost.memory_bytes) == ("memory", moved)
    assert cost["latency_ms"] == pytest.approx(LAUNCH_MS + moved / 320e9 * 1e3)


def test_compute_bound_layers_scale_with_the_width(gpu, make_layer):
    layer = make_layer(c_in=512, c_out=512, kernel=3, size=56)
    full, half = (gpu.cost(layer, LayerBits(width, width)) for width in (8, 4))
    assert full.bound == half.bound == "compute"
    assert half.compute_ms / full.compute_ms == pytest.approx(1 / 2)


def test_grouped_layers_gain_in_memory_alone(gpu, make_layer):
    layer = make_layer(c_in=96, c_out=96, kernel=3, size=56, groups=96)
    full, half = (gpu.cost(layer, LayerBits(width, width)) for width in (8, 4))
    assert full.compute_ms == half.compute_ms == pytest.approx(16 * layer.macs / (40 * 256 * 1590e3))
    assert half.memory_ms == pytest.approx(full.memory_ms / 2)


@pytest.mark.parametrize("bits", [LayerBits(4, 8), LayerBits(8, 4), LayerBits(16, 16), LayerBits(2, 2)])
def test_other_widths_are_refused(gpu, make_layer, bits):
    with pytest.raises(HardwareError, match="hardware 'gpu-int4' runs 4/4 and 8/8"):
        gpu.cost(make_layer(), bits)


@given(c_in=st.integers(1, 300), c_out=st.integers(1, 300), size=st.integers(1, 20), batch=st.integers(1, 20))
def test_costs_never_fall_with_widths_or_batch(gpu, make_layer, c_in, c_out, size, batch):
    layer = make_layer(c_in=c_in, c_out=c_out, size=size)
    cost = gpu.cost(layer, LayerBits(4, 4), batch)
    for bits, more in [(LayerBits(8, 8), 0), (LayerBits(4, 4), 1)]:
        dearer = gpu.cost(layer, bits, batch + more)
        assert dearer["latency_ms"] >= cost["latency_ms"] > 0
        assert dearer["energy_mj"] >= cost["energy_mj"] > 0
