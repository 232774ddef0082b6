"""From a float network and a policy to a network that computes with the policy's widths, and back from a file."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from haq.errors import ConfigError, ModelError, did_you_mean
from haq.files import replacing
from haq.layers import quantizable_layers
from haq.policy import BitPolicy
from haq.quant.calibration import Calibration
from haq.quant.folding import fold_batch_norm
from haq.quant.modules import quantized_like, replace_module
from haq.quant.quantizers import Quantizer

__all__ = ["load_quantized", "prepare", "save_quantized"]


def prepare(model: nn.Module, policy: BitPolicy, calibration: Calibration | None = None) -> nn.Module:
    """Returns a copy of `model` whose layers in `policy` are quantized; the model itself is not changed.

    Args:
        model: The float network, batch norms folded.
        policy: Widths of the layers to quantize; other layers stay in floating point.
        calibration: Scales for the policy's widths; without it they are all 1, to be loaded from a state dict.

    Raises:
        ConfigError: The policy names a layer that the model does not have.
    """
    quantized = copy.deepcopy(model)
    layers = dict(quantizable_layers(quantized))
    for name, bits in policy.items():
        if name not in layers:
            raise ConfigError(f"the policy's layer {name!r} is not in the model{did_you_mean(name, layers)}")
        layer = layers[name]
        scales = calibration[name] if calibration is not None else None
        weights: nn.Module = nn.Identity()
        inputs: nn.Module = nn.Identity()
        if bits.w_bits is not None:
            scale = scales.weights[bits.w_bits] if scales else torch.ones(layer.weight.shape[0])
            weights = Quantizer(bits.w_bits, True, scale, axis=0)
        if bits.a_bits is not None:
            scale = scales.inputs[bits.a_bits] if scales else torch.ones(1)
            inputs = Quantizer(bits.a_bits, scales is not None and scales.signed_inputs, scale)
        quantized = replace_module(quantized, layer, quantized_like(layer, weights, inputs))
    return quantized


def save_quantized(path: Path, model: nn.Module, policy: BitPolicy, sample: Tensor) -> None:
    """Writes a prepared network's weights and scales, with what `load_quantized` needs to rebuild it."""
    content = {"state_dict": model.state_dict(), "policy": policy.to_dict(), "sample_shape": list(sample.shape)}
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load_quantized(path: Path, model: nn.Module) -> nn.Module:
    """Rebuilds a network that `save_quantized` wrote.

    Args:
        path: `model.pt` of a run folder; it is read with `weights_only=True` and cannot run code.
        model: The float network that the search started from; its own weights do not matter.

    Raises:
        ModelError: The file is damaged or belongs to another network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        folded = fold_batch_norm(model, torch.zeros(content["sample_shape"]))
        quantized = prepare(folded, BitPolicy.from_dict(content["policy"]))
        quantized.load_state_dict(content["state_dict"])
    except ModelError:
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"cannot load {path} into {type(model).__name__}: {reason}") from None
    return quantized.eval()
