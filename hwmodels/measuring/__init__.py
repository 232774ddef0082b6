"""Measuring what the layers of a network cost on the machine at hand."""

from haq.hwmodels.measuring.measure import Plan, measure

__all__ = ["Plan", "measure"]
