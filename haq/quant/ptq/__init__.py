"""Post-training passes: cross-layer equalisation, bias correction, AdaRound, and calibration without data."""

from haq.quant.ptq.adaround import adaround
from haq.quant.ptq.bias_correction import correct_bias, correct_bias_analytic
from haq.quant.ptq.data_free import calibrate_data_free, data_free_inputs
from haq.quant.ptq.equalization import equalize
from haq.quant.ptq.passes import PASSES, REPORTED, apply_passes, check_applicable, folds

__all__ = [
    "PASSES",
    "REPORTED",
    "adaround",
    "apply_passes",
    "calibrate_data_free",
    "check_applicable",
    "correct_bias",
    "correct_bias_analytic",
    "data_free_inputs",
    "equalize",
    "folds",
]
