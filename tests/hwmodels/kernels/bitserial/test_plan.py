import numpy as np
import pytest

from haq.errors import HardwareError
from haq.hwmodels.kernels.bitserial.cpu import Backend
from haq.hwmodels.kernels.bitserial.plan import Layout, choose_tile, pair_tables
from haq.hwmodels.kernels.bitserial.tile import TREE


def test_pairs_by_hand():
    # 2 weight planes and 2 activation planes of one run of one word, at position 0; 4 channels of 8 bytes a word
    tables = pair_tables(2, 2, np.array([0]), 1, channels=4, group=1)
    np.testing.assert_array_equal(tables.counts, [1, 2, 1])  # (0, 0); (0, 1) and (1, 0); (1, 1)
    np.testing.assert_array_equal(tables.w_offsets, np.array([0, 0, 1, 1]) * 32)
    np.testing.assert_array_equal(tables.a_offsets, np.array([0, 1, 0, 1]) * 8)


def test_diagonals_are_filled_up_with_the_word_of_zeros():
    tables = pair_tables(2, 1, np.array([0, 3]), 1, channels=1, group=TREE)
    np.testing.assert_array_equal(tables.counts, [1, 1])
    np.testing.assert_array_equal(tables.w_offsets, np.array([0, 1, *[4] * 6, 2, 3, *[4] * 6]) * 8)
    np.testing.assert_array_equal(tables.a_offsets, np.array([0, 3, *[0] * 6, 0, 3, *[0] * 6]) * 8)


def test_windows_beyond_int32_offsets_are_refused():
    with pytest.raises(HardwareError, match="more than int32 offsets reach"):
        pair_tables(1, 1, np.array([0, 2**28]), 1, channels=1, group=1)


@pytest.mark.parametrize(
    ("channels", "joined", "words"),
    [(3, True, 3), (16, True, 3), (32, True, 6), (64, False, 9), (96, True, 15), (128, False, 18)],
)
def test_rows_of_taps_are_joined_where_that_saves_words(channels, joined, words):
    layout = Layout(channels, (3, 3))
    assert (layout.joined, layout.runs * layout.words) == (joined, words)


def test_taps_with_others_between_them_are_not_joined():
    assert not Layout(16, (3, 3), dilation=(1, 2)).joined
    assert not Layout(16, (3, 3), groups=2).joined
    assert Layout(16, (3, 3), dilation=(2, 1)).joined


def test_positions_by_hand():
    # 4×5 pixels and a padding of (0, 1): rows of 7 positions; windows of 2×2 every second column
    layout = Layout(64, (2, 2), stride=(1, 2), padding=(0, 1))
    np.testing.assert_array_equal(layout.run_positions((4, 5)), [0, 1, 7, 8])
    np.testing.assert_array_equal(layout.window_positions(1, (4, 5)), [0, 2, 4, 7, 9, 11, 14, 16, 18])
    np.testing.assert_array_equal(layout.window_positions(2, (4, 5))[9:], 28 + layout.window_positions(1, (4, 5)))
    # joined, a row has one position for each of its 3 windows
    layout = Layout(16, (2, 2), stride=(1, 2), padding=(0, 1))
    np.testing.assert_array_equal(layout.run_positions((4, 5)), [0, 3])
    np.testing.assert_array_equal(layout.window_positions(1, (4, 5)), np.arange(9))


def test_the_tree_is_for_long_products_on_cpus_that_gain_from_it():
    counting, adding = Backend("avx512", 8), Backend("avx512", 8, tree_gain=2.0)
    assert choose_tile(counting, 2, 2, 1000).group == 1
    assert choose_tile(adding, 2, 2, 1000).group == TREE
    assert choose_tile(adding, 2, 2, 1).group == 1
