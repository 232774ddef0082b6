"""Cost models of hardware, and the tables that a search looks costs up in."""

from haq.hwmodels.bismo import Bismo
from haq.hwmodels.footprint import bops, size_bytes
from haq.hwmodels.hardware import Hardware, LayerCost
from haq.hwmodels.registry import describe_hardware, get_hardware, list_hardware
from haq.hwmodels.table import CostTable

__all__ = [
    "Bismo",
    "CostTable",
    "Hardware",
    "LayerCost",
    "bops",
    "describe_hardware",
    "get_hardware",
    "list_hardware",
    "size_bytes",
]
