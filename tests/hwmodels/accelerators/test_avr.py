import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.hwmodels import get_hardware
from haq.hwmodels.accelerators.avr import Avr
from haq.policy import LayerBits


@pytest.fixture(scope="module")
def avr() -> Avr:
    hardware = get_hardware("avr")
    assert isinstance(hardware, Avr)
    return hardware


@pytest.mark.parametrize(
    ("w_bits", "cycles"),
    [
        (8, 3 + 2 + 2 + 5 + 3),  # load both, multiply, add, loop
        (4, 1.5 + 2 + 3 + 2 + 5 + 3),  # half a load, unpack
        (2, 0.75 + 2 + 3 + 2 + 5 + 3),
        (1, 0.375 + 2 + 3 + 5 + 3),  # no product
    ],
)
def test_layer_by_hand(avr, make_layer, w_bits, cycles):
    layer = make_layer(c_in=16, c_out=8, kernel=3, size=5)
    cost = avr.cost(layer, LayerBits(w_bits, 8), batch=2)
    assert cost["latency_ms"] == pytest.approx(2 * (layer.macs * cycles + 8 * 25 * 60) / 20e3)
    assert cost["latency_ms"] == pytest.approx(cost.compute_ms + cost.memory_ms)
    assert cost["energy_mj"] == pytest.approx(cost["latency_ms"] * 0.062)
    assert "buffer_bytes" not in cost.values


def test_instructions_of_the_data_sheet(avr):
    """AVR Instruction Set Manual, column AVRe: LPM 3, LD 2, MUL 2 cycles."""
    assert (avr.flash_load_cycles, avr.sram_load_cycles, avr.multiply_cycles) == (3, 2, 2)


def test_limits(avr):
    assert avr.limits == {"size": 32 * 1024, "ram": 2 * 1024}


@given(w=st.sampled_from([1, 2, 4]), c_in=st.integers(1, 30), size=st.integers(1, 9), batch=st.integers(1, 20))
def test_fewer_bits_save_loads_and_size(avr, make_layer, w, c_in, size, batch):
    layer = make_layer(c_in=c_in, size=size)
    cost, wider, more = (avr.cost(layer, LayerBits(w * s, 8), batch + b) for s, b in [(1, 0), (2, 0), (1, 1)])
    assert 0 < cost.memory_bytes < wider.memory_bytes
    assert 0 < cost.memory_ms < wider.memory_ms
    assert 0 < cost["size_bytes"] <= wider["size_bytes"]
    assert 0 < cost["latency_ms"] < more["latency_ms"]
    assert 0 < cost["energy_mj"] < more["energy_mj"]
