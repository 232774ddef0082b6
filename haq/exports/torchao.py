"""`torchao`: the widths as a configuration that `torchao.quantize_` applies, layer by layer.

torchao sets ranges itself when it is applied, so the file holds widths, not scales. It supports weights of 2 to 8 bits
alone, and for linear layers also with 8-bit activations whose range it finds at run time. Its weights run in linear
layers, convolutions in two dimensions and tables of embeddings.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from haq.errors import ConfigError, did_you_mean
from haq.exports.run_network import require
from haq.layers import LayerSpec
from haq.policy import BitPolicy, LayerBits

__all__ = ["to_torchao"]

_OTHERS = "export onnx, qonnx or packed"
_FIX = f"search with --weights-only and --bits 2-8, or {_OTHERS}"


def to_torchao(policy: BitPolicy, layers: Sequence[LayerSpec]) -> str:
    """Returns a `FqnToConfig` as JSON, which `torchao.core.config.config_from_dict` reads without running code.

    Args:
        policy: Widths of the layers.
        layers: Layers of the network.

    Raises:
        ConfigError: torchao does not support a layer's widths, the policy names an unknown layer, or torchao is
            missing.
    """
    known = {layer.name: layer for layer in layers}
    for name, bits in policy.items():
        if name not in known:
            raise ConfigError(f"the policy's layer {name!r} is not in the network{did_you_mean(name, known)}")
        if reason := _refusal(known[name], bits):
            widths = f"w_bits={bits.w_bits} and a_bits={bits.a_bits}"
            raise ConfigError(f"layer {name!r} ({known[name].kind}) has {widths}, but {reason}")
    require("torchao", "torchao")
    require(
        "torchao.quantization", "torchao"
    )  # imported here, where its logs about kernels for other devices are hidden
    from torchao.core.config import config_to_dict
    from torchao.quantization import FqnToConfig

    configs = OrderedDict((name, _config(known[name], bits)) for name, bits in policy.items())
    return json.dumps(config_to_dict(FqnToConfig(fqn_to_config=configs)), indent=1) + "\n"


def _refusal(layer: LayerSpec, bits: LayerBits) -> str | None:
    """Returns why torchao cannot quantize a layer, and the fix; `None` if it can."""
    if reason := _not_run(layer):
        return f"{reason}; {_OTHERS}"
    if bits.w_bits in (1, 16):
        return f"torchao has weights of 2 to 8 bits; {_FIX}"
    if bits.w_bits is not None and layer.in_channels == layer.groups:  # its scales are over input channels
        return f"torchao cannot quantize a layer that reads one channel at a time; {_OTHERS}"
    if bits.a_bits is None or (layer.is_lookup and bits.w_bits is not None):  # indices have no width
        return None
    if bits.w_bits is None:
        return f"torchao does not quantize activations beside weights in floating point; {_FIX}"
    if layer.kind != "linear":
        return f"torchao leaves the activations of convolutions in floating point; {_FIX}"
    return None if bits.a_bits == 8 else f"torchao has activations of 8 bits; {_FIX}"


def _not_run(layer: LayerSpec) -> str | None:
    """Returns why torchao cannot run a layer with any widths; `None` if it can."""
    if layer.is_lookup:
        return "torchao looks up single rows, not bags of them" if layer.in_size != layer.out_size else None
    if layer.kind in ("conv", "depthwise", "grouped"):
        return "torchao runs convolutions in two dimensions only" if len(layer.kernel) != 2 else None
    return None if layer.kind == "linear" else f"torchao does not run {layer.kind} layers"


def _config(layer: LayerSpec, bits: LayerBits) -> Any:
    """Returns torchao's configuration of one layer, with one scale for every output channel."""
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, PerAxis

    if bits.w_bits is None:
        return None
    dtype = getattr(torch, f"int{bits.w_bits}")
    if bits.a_bits is None or layer.is_lookup:
        return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerAxis(0))
    return Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=PerAxis(0))
