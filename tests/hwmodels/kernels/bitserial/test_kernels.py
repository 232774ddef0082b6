import numpy as np

from haq.hwmodels.kernels.bitserial.kernels import window_sums


def test_window_sums_by_hand():
    # two groups: positions alternate between them; windows of two runs, the last one filling a tile up
    sums = np.array([1, 10, 2, 20, 3, 30], np.int32)
    out = np.zeros((2, 2), np.int32)
    window_sums(sums, np.array([0, 2, 2]), np.array([0, 2]), out)
    np.testing.assert_array_equal(out, [[3, 30], [5, 50]])
