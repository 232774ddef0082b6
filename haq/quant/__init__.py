"""Quantization: schemes by name, calibration, post-training passes, fine-tuning, integer-only conversion.

from haq.quant import calibrate, convert, finetune, get_scheme, list_schemes, prepare, quantize

quantize(tensor, 4, "kmeans")                                   # one tensor: codes, scale or codebook
scheme = get_scheme("lsq")
ready = calibrate(model, batches, bits=[4, 8], scheme=scheme)   # quantizers for every layer and width
network = prepare(model, policy, scheme, ready)                 # fake-quantized copy
finetune(network, images, model, steps=300)                     # learns the float network's answers
convert(network, batches)                                       # integer-only network
"""

from haq.quant.api import quantize
from haq.quant.calibration import calibrate
from haq.quant.integer import convert
from haq.quant.preparation import load_quantized, prepare, save_quantized
from haq.quant.qat import finetune
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.schemes import get_scheme, list_schemes

__all__ = [
    "QuantizedTensor",
    "calibrate",
    "convert",
    "finetune",
    "get_scheme",
    "list_schemes",
    "load_quantized",
    "prepare",
    "quantize",
    "save_quantized",
]
