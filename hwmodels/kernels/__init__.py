"""Kernels that run quantized networks on this machine: bit-serial ones for CPUs, bit planes for GPUs."""
