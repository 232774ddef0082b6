import numpy as np
import pytest

from haq.hwmodels import CostTable, bops, get_hardware, list_hardware, size_bytes
from haq.hwmodels.accelerators.footprint import footprint
from haq.policy import BitPolicy, LayerBits


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
        assert (cost["size_bytes"], cost["bops"]) == (size_bytes(layer, bits), bops(layer, bits))


def test_what_the_network_alone_decides_is_counted_for_every_cell(layers):
    counted = footprint(layers, (2, 4, 8), (3, 8))
    for row, layer in enumerate(layers):
        for w, w_bits in enumerate((2, 4, 8)):
            for a, a_bits in enumerate((3, 8)):
                bits = LayerBits(w_bits, a_bits)
                assert counted["size_bytes"][row, w, a] == size_bytes(layer, bits)
                assert counted["bops"][row, w, a] == bops(layer, bits)
                part = w_bits * layer.params / sum(layer.params for layer in layers)
                assert counted["bits_per_weight"][row, w, a] == part


def test_bits_are_the_average_over_all_weights(make_layer):
    """100 weights of 8 bits and 300 of 2 are 3.5 bits a weight, whatever the activations and the hardware."""
    layers = [make_layer("first", 10, 10, 1), make_layer("second", 30, 10, 1)]
    for table in (CostTable.footprint(layers, (2, 8)), CostTable.build(get_hardware("edge"), layers, (2, 8), (2, 8))):
        inputs = table.a_bits[0]
        policy = BitPolicy({"first": LayerBits(8, inputs), "second": LayerBits(2, inputs)})
        assert table.cost(policy)["bits_per_weight"] == 3.5
        assert table.bounds("bits_per_weight") == (2.0, 8.0)


def test_uniform_widths_average_exactly_what_they_are(make_layer):
    """Parts such as 3·p/total add up to 3.0000000000000004 for some networks, which a limit of 3 would refuse."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        sizes = generator.integers(1, 512, (int(generator.integers(1, 60)), 2))
        layers = [make_layer(f"conv{i}", int(c_in), int(c_out)) for i, (c_in, c_out) in enumerate(sizes)]
        table = CostTable.footprint(layers, range(1, 9))
        for width in range(1, 9):
            policy = BitPolicy({layer.name: LayerBits(width, None) for layer in layers})
            assert table.cost(policy)["bits_per_weight"] == width
            assert table.bounds("bits_per_weight", dict(policy)) == (width, width)
