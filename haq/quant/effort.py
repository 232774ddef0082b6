"""What large networks can afford, by counts alone: the same on every machine, however busy it is.

Work is counted in multiply-accumulates. Two cores of a server with AVX-512 do about `MACS_PER_SECOND` of them, in
convolutions and linear layers in floating point. Small networks afford everything.
"""

from __future__ import annotations

__all__ = ["MACS_PER_SECOND", "affordable"]

MACS_PER_SECOND = 40e9
"""Of two cores, measured with ResNet-50 at 224² (39 G) and BERT-base at 128 tokens (54 G)."""


def affordable(count: int, macs_each: float, seconds: float, least: int) -> int:
    """Returns how many samples to process: all, or as many as two cores process in about this time.

    Args:
        count: Samples that there are.
        macs_each: Multiply-accumulates of one sample, over all passes.
        seconds: Time that two cores may take.
        least: The result is at least this, or `count`.

    Examples:
        >>> affordable(512, 41e6, 20, 16), affordable(512, 11e9, 20, 16), affordable(512, 1e12, 20, 16)
        (512, 72, 16)
    """
    most = int(seconds * MACS_PER_SECOND / max(macs_each, 1.0))
    return min(count, max(most, least))
