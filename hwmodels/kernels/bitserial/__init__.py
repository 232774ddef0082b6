"""Bit-serial kernels for CPUs, compiled on first use; importing this package imports numba."""

from haq.hwmodels.kernels.bitserial.cpu import backends, cpu_features
from haq.hwmodels.kernels.bitserial.layer import BitSerialLayer

__all__ = ["BitSerialLayer", "backends", "cpu_features"]
