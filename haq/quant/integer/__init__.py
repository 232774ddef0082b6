"""Integer-only inference: converts a prepared network into one that computes only with integers."""

from haq.quant.integer.check import Difference, compare
from haq.quant.integer.network import IntegerNetwork, convert, insert_value_grids, integer_network

__all__ = ["Difference", "IntegerNetwork", "compare", "convert", "insert_value_grids", "integer_network"]
