"""Integer-only inference: a prepared network as one that computes with integers alone."""

from haq.quant.integer.check import Difference, compare
from haq.quant.integer.network import IntegerNetwork, convert, insert_value_grids, integer_network

__all__ = ["Difference", "IntegerNetwork", "compare", "convert", "insert_value_grids", "integer_network"]
