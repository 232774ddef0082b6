"""Compensated rounding: a layer's other weights make up for the rounding error of each one."""

from haq.quant.compensation.layers import Rounded, round_layer
from haq.quant.compensation.moments import Moments, Reads, is_product
from haq.quant.compensation.sequential import compensate_in_sequence, compensate_together

__all__ = ["Moments", "Reads", "Rounded", "compensate_in_sequence", "compensate_together", "is_product", "round_layer"]
