"""Prepares a float network to compute with the widths of a policy, and saves and loads prepared networks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from haq.errors import ConfigError, ModelError, did_you_mean
from haq.io.files import replacing
from haq.io.prefixes import one_line
from haq.io.tensors import read_tensors
from haq.layers import copied, quantizable_layers, reachable, replace_modules
from haq.layers.kinds import kind_of
from haq.policy import BitPolicy
from haq.quant.calibration import Calibration
from haq.quant.compensation import Rounded
from haq.quant.folding import fold_batch_norm
from haq.quant.modules import Lookups, Quantized, quantized_like
from haq.quant.schemes import Scheme, get_scheme
from haq.quant.schemes.dorefa import GradientQuantizer

__all__ = ["load_quantized", "load_state", "prepare", "reopened", "save_quantized"]

Known = TypeVar("Known")


def prepare(
    model: nn.Module,
    policy: BitPolicy,
    scheme: str | Scheme | None = None,
    calibration: Calibration | None = None,
) -> nn.Module:
    """Returns a copy of `model` whose layers in `policy` are quantized; the model itself is not changed.

    Args:
        model: The float network.
        policy: Widths of the layers to quantize; other layers stay in floating point.
        scheme: Scheme for these layers; by default the one that the policy names.
        calibration: Quantizers for the policy's widths. Without it, weight quantizers are set up from the weights, and
            input quantizers for values between 0 and 1, which a state dict should then overwrite.

    Raises:
        ConfigError: The policy names a layer that is not in the model or the calibration, or the calibration lacks a
            width.
    """
    chosen = scheme if isinstance(scheme, Scheme) else get_scheme(scheme or policy.scheme)
    gradient_bits = chosen.options.get("gradient_bits")
    quantized = copied(reachable(model))
    layers, places = dict(quantizable_layers(quantized)), dict[nn.Module, Quantized]()
    for name, bits in policy.items():
        if name not in layers:
            raise ConfigError(f"the policy's layer {name!r} is not in the model{did_you_mean(name, layers)}")
        layer = layers[name]
        if calibration is not None and name not in calibration:
            raise ConfigError(
                f"layer {name!r} was not called in calibration, so it has no quantizers; leave it out of the policy"
            )
        ready = calibration[name] if calibration is not None else None
        weights, inputs = Rounded(nn.Identity()), cast(nn.Module, nn.Identity())
        if bits.w_bits is not None:
            weights = (
                _ready("weights", ready.weights, bits.w_bits)
                if ready is not None
                else Rounded(chosen.weight_quantizer(layer.weight.detach(), bits.w_bits))
            )
        if bits.a_bits is not None:
            inputs = (
                _ready("inputs", ready.inputs, bits.a_bits)
                if ready is not None
                else _uncalibrated(layer, chosen, bits.a_bits)
            )
        gradients = GradientQuantizer(gradient_bits) if gradient_bits else None
        places[layer] = quantized_like(layer, copy.deepcopy(weights.quantizer), copy.deepcopy(inputs), gradients)
        weights.put_in(places[layer])
    return replace_modules(quantized, places)


def _ready(which: str, known: Mapping[int, Known], bits: int) -> Known:
    if bits not in known:
        raise ConfigError(f"{which} of {bits} bits are not calibrated; calibrate for bits {sorted({*known, bits})}")
    return known[bits]


def _uncalibrated(layer: nn.Module, scheme: Scheme, bits: int) -> nn.Module:
    """Returns a quantizer for values between 0 and 1."""
    if not kind_of(layer).reads_values:
        return Lookups(bits)
    return scheme.input_quantizer(torch.linspace(0, 1, 64)[None], bits)


def reopened(model: nn.Module, shape: Sequence[int], dtype: str | None, folded: bool) -> nn.Module:
    """Returns a float network in the form in which it was quantized for a file.

    Args:
        model: The user's network.
        shape: Shape of a sample.
        dtype: Type of a sample, such as `float32`; `None` for older files, which do not hold it.
        folded: Whether its batch norms were folded.
    """
    blank = torch.zeros(list(shape), dtype=getattr(torch, dtype or "float32"))
    if folded:
        return fold_batch_norm(model, blank)
    try:
        return reachable(model, blank if dtype is not None else None)
    except ModelError:  # this may be another network; loading the state reports what does not fit
        return reachable(model)


def save_quantized(
    path: Path,
    model: nn.Module,
    policy: BitPolicy,
    sample: Tensor,
    folded: bool = False,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Writes a prepared network's weights and scales, with all that `load_quantized` needs to rebuild it.

    Args:
        path: File to write.
        model: The prepared network.
        policy: Its widths and scheme.
        sample: One input; only its shape and type are stored.
        folded: Whether batch norms were folded before the network was prepared.
        options: Options of the scheme.
    """
    content = {
        "state_dict": model.state_dict(),
        "policy": policy.to_dict(),
        "sample_shape": list(sample.shape),
        "sample_dtype": str(sample.dtype).removeprefix("torch."),
        "folded": folded,
        "options": dict(options or {}),
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load_quantized(path: Path, model: nn.Module) -> nn.Module:
    """Rebuilds a network that `save_quantized` wrote, in evaluation mode.

    Args:
        path: `model.pt` of a run folder; it is read with `weights_only=True` and cannot run code.
        model: The float network that the search started from; its weights are overwritten in the result.

    Raises:
        ModelError: The file is damaged or belongs to another network.
    """
    try:
        content: dict[str, Any] = read_tensors(path)
        base = reopened(model, content["sample_shape"], content.get("sample_dtype"), content.get("folded", True))
        policy = BitPolicy.from_dict(content["policy"])
        quantized = prepare(base, policy, get_scheme(policy.scheme, **content.get("options", {})))
        load_state(quantized, content["state_dict"])
    except ModelError:
        raise
    except Exception as error:  # torch.load raises many kinds of errors for a damaged file
        raise ModelError(f"cannot load {path} into {type(model).__name__}: {one_line(error)}") from None
    return quantized.eval()


def load_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Loads the state of a prepared network; adds biases to convolutions that got one from compensated rounding."""
    for name, layer in quantizable_layers(model):
        bias = state.get(f"{name}.bias")
        if bias is not None and kind_of(layer).gains_bias and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(bias))
    model.load_state_dict(dict(state))
