"""The parts of a packed file: streams of bits, and the tensors of a network that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from haq.errors import ConfigError
from haq.layers import quantizable_layers
from haq.quant.modules import Quantized
from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.granularity import group, ungroup
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.torch_internals import BatchNorm, buffers_of, parameters_of, unstored_buffers

__all__ = [
    "coded_layers",
    "norms_of",
    "pack",
    "packed_codes",
    "plain_tensors",
    "slope_and_shift",
    "stride_of",
    "unpack",
]


def pack(codes: npt.NDArray[Any], bits: int) -> bytes:
    """Returns non-negative codes below 2^bits as a stream of bits, least significant first, padded to whole bytes.

    Examples:
        >>> pack(np.array([1, 2, 3]), 3).hex()  # 011 010 001, read from the right
        'd100'
    """
    shifted = codes.reshape(-1, 1).astype(np.uint32) >> np.arange(bits, dtype=np.uint32)
    return np.packbits((shifted & 1).astype(np.uint8), bitorder="little").tobytes()


def unpack(stream: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.int32]:
    """Returns codes from a stream that `pack` made.

    Args:
        stream: Bytes, `(ceil(count · bits / 8),)`.
        bits: Width of a code.
        count: Number of codes.

    Examples:
        >>> unpack(np.frombuffer(bytes.fromhex('d100'), np.uint8), 3, 3).tolist()
        [1, 2, 3]
    """
    ones = np.unpackbits(stream, count=count * bits, bitorder="little").reshape(count, bits)
    codes: npt.NDArray[np.int32] = (ones.astype(np.int32) << np.arange(bits, dtype=np.int32)).sum(1, dtype=np.int32)
    return codes


def coded_layers(network: nn.Module) -> Iterator[tuple[str, Quantized]]:
    """Yields `(name, layer)` of every quantized layer, in registration order."""
    return ((name, layer) for name, layer in quantizable_layers(network) if isinstance(layer, Quantized))


@torch.no_grad()
def packed_codes(name: str, layer: Quantized, scheme: str) -> QuantizedTensor:
    """Returns the weights' codes; with a table of levels if codes times scale would differ in the last bits.

    Args:
        name: Name of the layer, for messages.
        layer: The layer.
        scheme: Name of its scheme, for messages.

    Raises:
        ConfigError: The scheme keeps weights in floating point.
    """
    quantizer = cast(Quantizer, layer.weight_quantizer)
    stored, used = quantizer.encode(layer.weight), quantizer(layer.weight)
    if (stored.scale is not None or stored.codebook is not None) and torch.equal(stored.dequantize(), used):
        return stored
    rows = group(used.float(), stored.granularity)
    tables = [row.unique() for row in rows]
    if stored.scale is None and stored.codebook is None:
        raise ConfigError(
            f"scheme {scheme!r} keeps the weights of layer {name!r} in floating point, so there are no codes to pack; "
            "search with --scheme linear, or save the network with torch"
        )
    assert all(len(table) <= 2**stored.bits for table in tables), "a quantizer has at most 2^bits levels in a group"
    width = max(map(len, tables))
    book = torch.stack([nn.functional.pad(table, (0, width - len(table)), value=float(table[-1])) for table in tables])
    codes = torch.stack([torch.searchsorted(table, row) for table, row in zip(tables, rows, strict=True)])
    indices = ungroup(codes.to(torch.int32), layer.weight, stored.granularity)
    return QuantizedTensor(indices, stored.bits, stored.granularity, layer.weight.dtype, codebook=book)


def stride_of(stored: QuantizedTensor) -> tuple[int, int]:
    """Returns the first code and the distance between codes; 2^bits of them cover all codes and zero points."""
    signed, unsigned, odd = (-(2 ** (stored.bits - 1)), 1), (0, 1), (1 - 2**stored.bits, 2)
    used = stored.codes if stored.zero_point is None else torch.cat([stored.codes.flatten(), stored.zero_point])
    for first, step in (unsigned,) if stored.codebook is not None else (signed, unsigned, odd):
        places = used - first
        if bool(((places % step == 0) & (places >= 0) & (places < step << stored.bits)).all()):
            return first, step
    raise AssertionError(f"codes from {int(used.min())} to {int(used.max())} at {stored.bits} bits")


def norms_of(network: nn.Module) -> list[BatchNorm]:
    """Returns the batch norms that evaluation mode turns into a slope and a shift."""
    return [m for m in network.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def slope_and_shift(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Returns the factor and the term of a batch norm in evaluation mode, as PyTorch computes them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean, norm.running_var
    weight = torch.ones_like(mean) if norm.weight is None else norm.weight
    zeros = torch.zeros(1, norm.num_features, 1, 1, dtype=mean.dtype)
    normalized = partial(nn.functional.batch_norm, running_var=variance, weight=weight, eps=norm.eps)
    slope = normalized(zeros + 1, running_mean=torch.zeros_like(mean), bias=None).flatten()
    shift = normalized(zeros, running_mean=mean, bias=norm.bias).flatten()
    return slope, shift


def plain_tensors(network: nn.Module, coded: set[str] | None = None) -> Iterator[Tensor]:
    """Yields every tensor that is not a code and not part of a quantizer or batch norm, in the order of modules.

    Args:
        network: Prepared or rebuilt network.
        coded: Layers whose weights are codes; by default, those with a weight quantizer.
    """
    skipped: set[nn.Module] = set(norms_of(network))
    for name, module in network.named_modules():
        if module in skipped:
            continue
        own = dict(chain(parameters_of(module).items(), buffers_of(module).items()))
        if isinstance(module, Quantized):
            quantizers = (module.weight_quantizer, module.input_quantizer, module.gradient_quantizer)
            skipped.update(chain.from_iterable(quantizer.modules() for quantizer in quantizers))
            if name in coded if coded is not None else not isinstance(module.weight_quantizer, nn.Identity):
                del own["weight"]
        yield from (
            tensor.detach() for key, tensor in own.items() if tensor is not None and key not in unstored_buffers(module)
        )
