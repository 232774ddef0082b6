"""Embeddings: no arithmetic, but the rows that are read and written take time and energy on all hardware."""

import pytest

from haq.hwmodels import bops, get_hardware, list_hardware, size_bytes
from haq.hwmodels.accelerators.gemm import Gemm
from haq.hwmodels.roofline import roofline
from haq.layers import LayerSpec
from haq.policy import LayerBits

EIGHT = LayerBits(8, 8)


def lookup(rows: int = 1000, width: int = 48, lookups: int = 12) -> LayerSpec:
    return LayerSpec(
        "words", "embedding", rows, width, (1, 1), (1, 1), (0, 0), (1, 1), 1, (lookups, 1), (lookups, 1), 0,
        rows * width, 0,
    )  # fmt: skip


def test_rows_have_scales_and_neither_biases_nor_quantized_inputs() -> None:
    assert size_bytes(lookup(), LayerBits(4, 8)) == 1000 * 48 // 2 + 4 * 1000
    assert size_bytes(lookup(), LayerBits(None, None)) == 4 * 1000 * 48
    assert bops(lookup(), EIGHT) == 0
    assert Gemm.of(lookup(), 2) == Gemm(1, 48, 0, 24)


@pytest.mark.parametrize("name", list_hardware())
def test_every_model_prices_the_rows_that_are_looked_up(name: str) -> None:
    hardware = get_hardware(name)
    for bits in hardware.pairs:
        cost = hardware.cost(lookup(), bits, batch=2)
        assert min(cost["latency_ms"], cost["energy_mj"], cost.memory_bytes) > 0
        other = LayerBits(bits.w_bits, 8)
        if other in hardware.pairs:  # indices have no width: it must not be a way to save
            assert {**cost.values} == {**hardware.cost(lookup(), other, batch=2).values}
    few, many = (hardware.cost(lookup(lookups=count), EIGHT, batch=2)["energy_mj"] for count in (12, 120))
    assert few < many
    short, tall = (hardware.cost(lookup(rows=rows), EIGHT, batch=2)["energy_mj"] for rows in (1000, 100_000))
    assert short == pytest.approx(tall)  # rows that nothing looks up are not read


@pytest.mark.parametrize("name", list_hardware())
def test_rooflines_leave_them_out(name: str) -> None:
    hardware = get_hardware(name)
    cost = hardware.cost(lookup(), EIGHT, batch=2)
    assert roofline(hardware, [lookup()], [cost], EIGHT, 2).marks == ()


CONVOLUTION = LayerSpec(
    "flat", "conv", 16, 32, (1, 9), (1, 1), (0, 4), (1, 1), 1, (1, 50), (1, 50), 32 * 16 * 9 * 50, 32 * 16 * 9, 32
)
AUDIO = LayerSpec("audio", "conv", 16, 32, (9,), (1,), (4,), (1,), 1, (50,), (50,), 32 * 16 * 9 * 50, 32 * 16 * 9, 32)
VOLUME = LayerSpec(
    "volume", "conv", 16, 32, (1, 1, 9), (1,) * 3, (0, 0, 4), (1,) * 3, 1, (1, 1, 50), (1, 1, 50), 32 * 16 * 9 * 50,
    32 * 16 * 9, 32,
)  # fmt: skip


@pytest.mark.parametrize("name", list_hardware())
def test_the_same_product_costs_the_same_in_any_number_of_dimensions(name: str) -> None:
    hardware = get_hardware(name)
    found = [hardware.cost(layer, EIGHT, batch=2) for layer in (CONVOLUTION, AUDIO, VOLUME)]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", list_hardware())
def test_a_transposed_convolution_is_priced_by_its_product(name: str) -> None:
    """2 by 2 kernels at stride 2: each input position makes four results, each of one product."""
    up = LayerSpec("up", "transposed", 16, 8, (2, 2), (2, 2), (0, 0), (1, 1), 1, (7, 7), (14, 14), 512 * 49, 512, 8)
    cost = get_hardware(name).cost(up, EIGHT, batch=2)
    assert min(cost["latency_ms"], cost["energy_mj"], cost.compute_ms, cost.memory_ms) > 0
    assert bops(up, EIGHT) == 64 * 512 * 49
    assert size_bytes(up, EIGHT) == 512 + 4 * (8 + 8 + 1)
