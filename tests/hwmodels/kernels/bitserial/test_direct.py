import numpy as np

from haq.hwmodels.kernels.bitserial.direct import CHANNELS, depthwise_weights


def test_weights_lie_by_tap_in_blocks_of_channels():
    weights = np.arange((CHANNELS + 1) * 6).reshape(CHANNELS + 1, 1, 2, 3)
    arranged = depthwise_weights(weights)
    assert arranged.shape == (2, 6, CHANNELS)
    np.testing.assert_array_equal(arranged[0, :, 1], weights[1].ravel())
    np.testing.assert_array_equal(arranged[1, :, 0], weights[CHANNELS].ravel())
    assert not arranged[1, :, 1:].any()
