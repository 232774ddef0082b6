import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import HardwareError
from haq.hwmodels import get_hardware
from haq.hwmodels.accelerators.npu import Npu
from haq.policy import LayerBits


@pytest.fixture(scope="module")
def npu() -> Npu:
    hardware = get_hardware("int8-npu")
    assert isinstance(hardware, Npu)
    return hardware


def test_peak(npu):
    """256 multiply-accumulates a cycle, as Arm's Ethos-U55 in its largest size: 0.256 TOPS at 500 MHz."""
    assert 2 * npu.macs_per_second(LayerBits(8, 8)) == pytest.approx(0.256e12)
    assert npu.macs_per_second(LayerBits(4, 8)) == npu.macs_per_second(LayerBits(8, 8))
    assert npu.macs_per_second(LayerBits(16, 8)) == npu.macs_per_second(LayerBits(8, 8)) / 2


def test_compute_bound_layer_by_hand(npu, make_layer):
    layer = make_layer(c_in=64, c_out=30, kernel=3, size=17)
    # 289 positions → 73 · 4; 30 channels → 4 · 8; 576 inputs → 72 · 8
    cost = npu.cost(layer, LayerBits(8, 8), batch=3)
    assert (cost.bound, cost["latency_ms"]) == ("compute", pytest.approx(3 * 73 * 4 * 72 / 500e3))
    weights, activations = 3 * layer.params * 8, 3 * (64 + 30) * 289 * 8
    assert cost.memory_bytes == (weights + activations) / 8
    assert cost["energy_mj"] == pytest.approx((3 * layer.macs * 0.3 + weights * 20 + activations * 1.6) * 1e-9)


def test_weights_stream_through_the_flash_port(npu, make_layer):
    layer = make_layer(c_in=2048, c_out=1000, kernel=1, size=1)
    for w_bits in (4, 8, 16):
        cost = npu.cost(layer, LayerBits(w_bits, 8), batch=1)
        assert (cost.bound, cost["latency_ms"]) == ("memory", pytest.approx(layer.params * w_bits / 8 / 500e3))


def test_inputs_are_read_once_for_each_pass(npu, make_layer):
    layer = make_layer(c_in=16, c_out=100, kernel=1, size=64)
    cost = npu.cost(layer, LayerBits(4, 8), batch=1)
    assert cost.memory_ms == pytest.approx((2 * 16 + 100) * 64**2 / 8 / 500e3)  # 100 channels take 2 passes of 64


def test_compute_does_not_gain_from_4_bits(npu, make_layer):
    layer = make_layer(c_in=64, c_out=64, kernel=3, size=16)
    compute = [npu.cost(layer, LayerBits(w, 8)).compute_ms for w in (4, 8, 16)]
    assert compute[1] == compute[0]
    assert compute[2] == pytest.approx(2 * compute[1])


def test_depthwise_uses_an_eighth_of_the_array(npu, make_layer):
    layer = make_layer(c_in=64, c_out=64, kernel=3, size=16, groups=64)
    cost = npu.cost(layer, LayerBits(8, 8), batch=1)
    assert layer.macs / (cost.compute_ms * 1e-3) == pytest.approx(npu.macs_per_second(LayerBits(8, 8)) / 8)


@pytest.mark.parametrize("bits", [LayerBits(4, 4), LayerBits(8, 4), LayerBits(8, 16), LayerBits(2, 8)])
def test_other_widths_are_refused(npu, make_layer, bits):
    with pytest.raises(HardwareError, match="hardware 'int8-npu' runs 4,8,16/8"):
        npu.cost(make_layer(), bits)


@given(
    w=st.sampled_from([4, 8]),
    c_in=st.sampled_from([1, 32, 300]),
    c_out=st.sampled_from([32, 300]),
    size=st.sampled_from([1, 7]),
    batch=st.integers(1, 20),
)
def test_costs_never_fall_with_widths_or_batch(npu, make_layer, w, c_in, c_out, size, batch):
    layer = make_layer(c_in=c_in, c_out=c_out, kernel=1, size=size)
    cost = npu.cost(layer, LayerBits(w, 8), batch)
    for bits, more in [(LayerBits(2 * w, 8), 0), (LayerBits(w, 8), 1)]:
        dearer = npu.cost(layer, bits, batch + more)
        assert dearer["latency_ms"] >= cost["latency_ms"] > 0
        assert dearer["energy_mj"] > cost["energy_mj"] > 0
