import numpy as np
import pytest

from haq.hwmodels.kernels.bitserial.cpu import Backend
from haq.hwmodels.kernels.bitserial.packing import SLACK
from haq.hwmodels.kernels.bitserial.plan import Layout, choose_tile
from haq.hwmodels.kernels.bitserial.products import BitPlanes, Channels, WeightGrid
from haq.hwmodels.kernels.bitserial.tile import TREE

ALL_WIDTHS = [(w, a) for w in range(1, 9) for a in range(1, 9)]


def no_finish(channels):
    zeros = np.zeros(channels, np.int32)
    return Channels(zeros, zeros, np.ones(channels, np.float32), np.zeros(channels, np.float32))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("w_bits", range(1, 9))
def test_every_weight_has_one_code(w_bits, signed):
    grid = WeightGrid.of(w_bits, signed)
    low, high = grid.bounds(w_bits)
    codes = grid.encode(np.arange(low, high + 1, grid.step))
    np.testing.assert_array_equal(codes, np.arange(2**w_bits))


def test_bounds_are_those_of_the_quantizers():
    assert WeightGrid.of(1, True).bounds(1) == (-1, 1)
    assert WeightGrid.of(4, True).bounds(4) == (-8, 7)
    assert WeightGrid.of(4, False).bounds(4) == (0, 15)


def test_zero_points_move_weights_but_no_codes():
    grid = WeightGrid.of(1, True, np.array([-1, 0]))
    assert grid.bounds(1) == (-1, 0)  # two's complement, not −1 and +1
    weights = np.array([[0, 1], [-1, 0]])  # codes −1 and 0, less −1 and 0
    np.testing.assert_array_equal(grid.encode(weights), [[0, 1], [0, 1]])
    np.testing.assert_array_equal(grid.offsets(2), [0, 1])
    assert WeightGrid.of(8, True, np.array([3, -100])).reach(8) == 227
    assert WeightGrid.of(8, True).reach(8) == 128


def test_channels_lie_in_blocks_of_their_group():
    terms = Channels(*(np.arange(6, dtype=kind) + 1 for kind in (np.int32, np.int32, np.float32, np.float32)))
    blocks = terms.blocks(groups=2, channels=2)
    np.testing.assert_array_equal(blocks[:2], [[[1, 2], [3, 0], [4, 5], [6, 0]]] * 2)
    np.testing.assert_array_equal(blocks[2:].view(np.float32), [[[1, 2], [3, 0], [4, 5], [6, 0]]] * 2)


@pytest.mark.parametrize(("w_bits", "a_bits"), ALL_WIDTHS)
def test_tree_of_carry_save_adders_is_exact(backend, generator, random_weights, reference, w_bits, a_bits):
    lanes = {"avx512": 8, "avx2": 4, "neon": 2, "plain": 1}[backend]
    always = Backend(backend, lanes, tree_gain=1e9)
    layout = Layout(70, (3, 1), padding=(1, 0))
    assert choose_tile(always, w_bits, a_bits, 6).group == TREE
    weights = random_weights(generator, (9, 70, 3, 1), w_bits, signed=False)
    codes = generator.integers(0, 2**a_bits, (1, 3, 3, 70)).astype(np.uint8)
    product = BitPlanes(weights, layout, w_bits, a_bits, WeightGrid.of(w_bits, False), no_finish(9), always)
    padded = np.pad(codes, ((0, 0), (1, 1), (0, 0), (0, 0)))
    out = np.empty((9, 9), np.int32)
    product.prepare(1, (3, 3))(np.append(padded.ravel(), np.zeros(SLACK, np.uint8)), out)
    np.testing.assert_array_equal(out.reshape(1, 3, 3, 9), reference(codes, weights, padding=(1, 0)))
