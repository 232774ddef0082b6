"""Cost models of hardware, and the tables that a search looks costs up in."""

from haq.hwmodels.accelerators.bismo import Bismo
from haq.hwmodels.accelerators.catalogue import describe_hardware, get_hardware, list_hardware
from haq.hwmodels.accelerators.footprint import bops, size_bytes
from haq.hwmodels.hardware import Hardware, LayerCost
from haq.hwmodels.tables.table import CostTable

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
