"""How much the network loses when one layer alone is quantized, at each width."""

from haq.runs.fingerprints import fingerprint
from haq.search.sensitivity.measure import measure_sensitivity
from haq.search.sensitivity.result import MEASURES, Sensitivity, cached, load_sensitivity, save_sensitivity

__all__ = [
    "MEASURES",
    "Sensitivity",
    "cached",
    "fingerprint",
    "load_sensitivity",
    "measure_sensitivity",
    "save_sensitivity",
]
