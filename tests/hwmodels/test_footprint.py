import pytest

from haq.hwmodels import bops, get_hardware, list_hardware, size_bytes
from haq.policy import LayerBits


def test_size_counts_packed_weights_biases_and_scales(make_layer):
    layer = make_layer(c_in=3, c_out=5, kernel=1)
    # 15 weights · 3 bits = 45 bits → 6 bytes; 5 biases, 5 weight scales and 1 activation scale of 4 bytes
    assert size_bytes(layer, LayerBits(3, 8)) == 6 + 4 * (5 + 5 + 1)


@pytest.mark.parametrize(
    ("bits", "size"),
    [
        (LayerBits(None, None), 4 * 15 + 4 * 5),  # no scale at all
        (LayerBits(None, 8), 4 * 15 + 4 * (5 + 1)),
        (LayerBits(8, None), 15 + 4 * (5 + 5)),
    ],
)
def test_float_parts_have_no_scales(make_layer, bits, size):
    assert size_bytes(make_layer(c_in=3, c_out=5, kernel=1), bits) == size


def test_bops_are_macs_times_both_widths(make_layer):
    layer = make_layer()
    assert bops(layer, LayerBits(3, 5)) == layer.macs * 15
    assert bops(layer, LayerBits(None, None)) == layer.macs * 1024


@pytest.mark.parametrize("name", list_hardware())
def test_all_hardware_agrees_whatever_the_batch(make_layer, name):
    layer, bits = make_layer(), get_hardware(name).pairs[0]
    for batch in (1, 16):
        cost = get_hardware(name).cost(layer, bits, batch)
        assert (cost.size_bytes, cost.bops) == (size_bytes(layer, bits), bops(layer, bits))
