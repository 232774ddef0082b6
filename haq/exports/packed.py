"""`packed`: integer codes at their true width in one safetensors file, and how the network is rebuilt from it.

Codes are stored one after another, least significant bit first, and every layer starts at a whole byte. Floating-point
values are stored in a few long tensors, because a header entry for every scale of a small network would take as much
space as its weights. `docs/exporting.md` describes the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from haq.errors import ConfigError, ModelError
from haq.exports.grids import InputGrid, input_grid
from haq.exports.packing import (
    coded_layers,
    norms_of,
    pack,
    packed_codes,
    plain_tensors,
    slope_and_shift,
    stride_of,
    unpack,
)
from haq.layers import copied, quantizable_layers, replace_modules
from haq.layers.kinds import kind_of
from haq.policy import BitPolicy
from haq.quant.modules import quantized_like
from haq.quant.preparation import reopened
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.tensor import QuantizedTensor

__all__ = ["GridQuantizer", "load_packed", "to_packed"]

_VERSIONS = (1, 2)  # zero points have 32 bits in version 1, and are packed like codes in version 2


class GridQuantizer(nn.Module):
    """Rounds to a fixed grid, exactly like the quantizer that the grid was taken from."""

    def __init__(self, grid: InputGrid) -> None:
        super().__init__()
        self.grid, self.bits = grid, grid.bits

    def forward(self, x: Tensor) -> Tensor:
        """Returns the fake-quantized `x`, same shape and dtype."""
        grid, values = self.grid, x.float()
        if grid.binary:
            return torch.where(values >= 0, grid.scale, -grid.scale).to(x.dtype)
        return torch.fake_quantize_per_tensor_affine(values, grid.scale, grid.zero, grid.low, grid.high).to(x.dtype)


def to_packed(network: nn.Module, policy: BitPolicy, sample: Tensor, folded: bool = False) -> bytes:
    """Returns the content of a file that `load_packed` reads.

    A batch norm is stored as two numbers per channel, its slope and its shift. Multiplying the slope into the weights'
    scale would save one of them, but change the last bits of the network's outputs.

    Args:
        network: From `haq.quant.prepare`, with any scheme whose activations have uniform grids.
        policy: Its widths.
        sample: One input.
        folded: Whether batch norms were folded before the network was prepared.

    Raises:
        ConfigError: The scheme's activations or weights have no integer codes.
    """
    from safetensors.torch import save

    layers: dict[str, list[Any]] = {}
    streams, scales, zeros, books, steps = [], [], [], [], []
    for name, layer in coded_layers(network):
        entry: dict[str, Any] = {}
        w_bits = None
        if not isinstance(layer.weight_quantizer, nn.Identity):
            stored = packed_codes(name, layer, policy.scheme)
            w_bits = stored.bits
            first, step = stride_of(stored)
            streams.append(pack(((stored.codes - first) // step).numpy(), w_bits))
            if (first, step) != (-(2 ** (w_bits - 1)), 1):
                entry |= {"first": first, "step": step}
            if stored.granularity != "channel":
                entry["granularity"] = stored.granularity
            if stored.codebook is not None:
                books.append(stored.codebook.flatten())
                entry["levels"] = stored.codebook.shape[1]
            else:
                assert stored.scale is not None
                scales.append(stored.scale)
            if stored.zero_point is not None:
                zeros.append(pack(((stored.zero_point - first) // step).numpy(), w_bits))
                entry["zero_point"] = True
        grid = input_grid(name, layer, policy.scheme)
        if grid is not None:
            steps.append(torch.tensor([grid.scale]))
            if (grid.low, grid.zero) != (0, 0):
                entry["input"] = [grid.low, grid.high, grid.zero]
        if kind_of(layer).gains_bias and layer.bias is not None:
            entry["bias"] = True  # compensated rounding may have added it
        widths = [w_bits, grid.bits if grid else None]
        layers[name] = [*widths, list(layer.weight.shape), *([entry] if entry else [])]
    tensors = {
        "codes": _bytes(streams),
        "scales": _joined(scales),
        "zero_points": _bytes(zeros),
        "codebooks": _joined(books),
        "input_scales": _joined(steps),
        "norms": _joined([values for norm in norms_of(network) for values in slope_and_shift(norm)]),
    }
    plain = list(plain_tensors(network))
    for dtype in dict.fromkeys(tensor.dtype for tensor in plain):
        key = "rest." + str(dtype).removeprefix("torch.")
        tensors[key] = _joined([tensor for tensor in plain if tensor.dtype == dtype])
    about = {
        "version": 2 if zeros else 1, "scheme": policy.scheme, "folded": folded, "sample": list(sample.shape),
        "sample_dtype": str(sample.dtype).removeprefix("torch."), "layers": layers,
    }  # fmt: skip
    text = json.dumps(about, separators=(",", ":"), ensure_ascii=False)
    present = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    return cast(bytes, save(present, {"haq": text}))


def load_packed(path: Path, model: nn.Module) -> nn.Module:
    """Rebuilds a network; on the same machine, its outputs equal those of the packed network bit for bit.

    Args:
        path: A file written by `haq export --format packed`; reading it runs no code.
        model: The float network that the search started from; its own weights do not matter.

    Returns:
        The network in evaluation mode, with the weights of the file and with layer inputs quantized by
        `GridQuantizer`.

    Raises:
        ModelError: The file is damaged or belongs to another network.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["haq"])
            tensors = {name: _Stream(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        if about["version"] not in _VERSIONS:
            raise ModelError(f"{path} has version {about['version']} of the format; this haq reads {_VERSIONS}")
        network = _rebuilt(model, about, tensors, path)
    except ModelError:
        raise
    except FileNotFoundError:
        raise ModelError(f"packed file {str(path)!r} does not exist; haq export --format packed writes one") from None
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError, ConfigError) as error:
        raise ModelError(
            f"cannot load {path} into {type(model).__name__}: {' '.join(str(error).split())[:200]}"
        ) from None
    return network.eval()


class _Stream:
    """A long tensor that is read from the front."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.position = values, 0

    def take(self, count: int) -> Tensor:
        part = self.values[self.position : self.position + count]
        if len(part) != count:
            raise ValueError(f"{count} values must follow at {self.position}, but there are {len(part)}")
        self.position += count
        return part.clone()


def _rebuilt(model: nn.Module, about: dict[str, Any], tensors: dict[str, _Stream], path: Path) -> nn.Module:
    network = copied(reopened(model, about["sample"], about.get("sample_dtype"), about["folded"]))
    known, places = dict(quantizable_layers(network)), dict[nn.Module, nn.Module]()
    for name, (w_bits, a_bits, shape, *more) in about["layers"].items():
        entry = more[0] if more else {}
        if name not in known or list(known[name].weight.shape) != shape:
            held = list(known[name].weight.shape) if name in known else "missing"
            _misfit(path, f"the weight of layer {name!r} is {shape} in the file and {held} in the model")
        grid: nn.Module = nn.Identity()
        if a_bits is not None:
            low, high, zero = entry.get("input", (0, 2**a_bits - 1, 0))
            scale = float(tensors["input_scales"].take(1))
            grid = GridQuantizer(InputGrid(a_bits, low, high, scale, zero, binary=low == -1 and a_bits == 1))
        layer = quantized_like(known[name], nn.Identity(), grid)
        if entry.get("bias") and layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), requires_grad=False)
        if w_bits is not None:
            layer.weight = nn.Parameter(_weight(layer.weight.detach(), w_bits, entry, tensors), requires_grad=False)
        places[known[name]] = layer
    network = replace_modules(network, places)
    for norm in norms_of(network):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.weight, norm.bias = (
            nn.Parameter(tensors["norms"].take(norm.num_features), requires_grad=False) for _ in range(2)
        )
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
        norm.eps = 0.0
    quantized = {name for name, (w_bits, *_) in about["layers"].items() if w_bits is not None}
    for tensor in plain_tensors(network, quantized):
        key = "rest." + str(tensor.dtype).removeprefix("torch.")
        tensor.copy_(tensors[key].take(tensor.numel()).reshape(tensor.shape))
    if left := [name for name, stream in tensors.items() if stream.position != len(stream.values)]:
        _misfit(path, f"{left[0]!r} holds more values than the model has")
    return network


def _misfit(path: Path, reason: str) -> NoReturn:
    raise ModelError(f"{path} belongs to another network: {reason}; give the model that the search started from")


def _weight(like: Tensor, bits: int, entry: dict[str, Any], tensors: dict[str, _Stream]) -> Tensor:
    """Returns the weights that the next codes stand for."""
    first, step = entry.get("first", -(2 ** (bits - 1))), entry.get("step", 1)

    def codes(stream: _Stream, count: int) -> Tensor:
        packed = stream.take(-(-count * bits // 8)).numpy()
        return cast(Tensor, torch.from_numpy(unpack(packed, bits, count)) * step + first)

    granularity = entry.get("granularity", "channel")
    groups = len(group(like, granularity))
    levels = entry.get("levels")
    zeros = None
    if entry.get("zero_point"):
        stream = tensors["zero_points"]
        zeros = stream.take(groups) if stream.values.dtype == torch.int32 else codes(stream, groups)
    stored = QuantizedTensor(
        codes(tensors["codes"], like.numel()).reshape(like.shape),
        bits,
        granularity,
        like.dtype,
        scale=None if levels else tensors["scales"].take(groups),
        zero_point=zeros,
        codebook=tensors["codebooks"].take(groups * levels).reshape(groups, levels) if levels else None,
    )
    # Laid out in memory as quantizers do, because PyTorch's kernels round differently for other strides
    return ungroup(group(stored.dequantize(), granularity).contiguous(), like, granularity)


def _bytes(streams: list[bytes]) -> Tensor | None:
    return torch.frombuffer(bytearray(b"".join(streams)), dtype=torch.uint8) if streams else None


def _joined(tensors: list[Tensor]) -> Tensor | None:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]) if tensors else None
