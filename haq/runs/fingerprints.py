"""Short fingerprints of networks and data, so that runs are never mixed up."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haq.data import ImageData, Samples
from haq.layers import run_sample

__all__ = ["data_fingerprint", "fingerprint", "same_numbers", "sample_outputs", "weights_fingerprint"]

_MOST_BYTES = 2**28  # of a split's samples; of larger splits, some samples are left out
_SHOWN = 64  # outputs, enough to tell two forward passes apart
_DIGITS = 6
_TOLERANCE = 1e-3  # of the largest output: other machines and thread counts sum in another order
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the printed form of functions; differs between processes


def weights_fingerprint(model: nn.Module) -> str:
    """Returns a digest of all parameters and buffers: names, types, shapes and values."""
    digest = hashlib.sha256()
    _take(digest, model.state_dict())
    return digest.hexdigest()


def data_fingerprint(data: ImageData) -> str:
    """Returns a digest of the three splits: sizes, order, labels, number of classes, and the samples.

    If the samples of a split take more than 256 MiB, only every second, third, ... sample counts.
    """
    digest = hashlib.sha256(f"{data.num_classes} ".encode())
    for split in (data.train, data.val, data.test):
        step = 1 + split.x.nbytes // _MOST_BYTES
        _take(digest, {**vars(split), "x": split.x[::step], "samples": len(split)})
    return digest.hexdigest()


def sample_outputs(model: nn.Module, data: ImageData) -> tuple[float, ...]:
    """Returns some outputs of the network for one training sample, which differ if its code has changed.

    Empty for a network whose outputs differ each time.
    """
    sample = data.train.batch([0])[0]
    first, second = (run_sample(model, sample).detach().flatten().double() for _ in range(2))
    if not torch.equal(first, second):
        return ()
    return tuple(float(f"{value:.{_DIGITS}g}") for value in first[:: 1 + len(first) // _SHOWN].tolist())


def same_numbers(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two sequences are equal up to rounding."""
    if len(one) != len(other):
        return False
    largest = max(map(abs, (*one, *other)), default=0.0)
    return all(abs(a - b) <= _TOLERANCE * largest for a, b in zip(one, other, strict=True))


def fingerprint(*parts: nn.Module | Samples) -> str:
    """Returns a digest of the content of networks and samples, for the key of a cache; names do not count.

    Of the code, only a module's printed form counts; a changed forward pass is not noticed.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            digest.update(f"{type(part).__qualname__} {_ADDRESS.sub('', str(part))} ".encode())
            _take(digest, part.state_dict())
        else:
            _take(digest, vars(part))
    return digest.hexdigest()


def _take(digest: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        digest.update(f"{name} ".encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)} ".encode())
            plain = value.detach().cpu()
            plain = plain.to_dense() if plain.layout != torch.strided else plain
            digest.update(plain.contiguous().flatten().view(torch.uint8).numpy().tobytes())  # NumPy lacks bfloat16
        elif isinstance(value, np.ndarray):
            digest.update(f"{value.dtype} {value.shape} ".encode() + value.tobytes())
        else:
            digest.update(_ADDRESS.sub("", repr(value)).encode())
