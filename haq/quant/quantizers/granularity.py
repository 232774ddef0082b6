"""Which values of a tensor share a scale, a zero point or a codebook."""

from __future__ import annotations

import re

from torch import Tensor

from haq.errors import ConfigError, did_you_mean

__all__ = ["check_granularity", "group", "ungroup"]

_NAMES = ("tensor", "channel", "row", "column", "element")


def check_granularity(granularity: str) -> str:
    """Returns `granularity` if it is valid. Values that share their parameters are called a group.

    - `tensor`: all values are one group.
    - `channel`: one group for each index of the first dimension, the output channel of a weight.
    - `row`: one group for each run along the last dimension.
    - `column`: one group for each column of the weight as a matrix `(out_channels, everything else)`.
    - `group:n`: groups of n consecutive values of a channel, or of the largest divisor of its length below n.
    - `element`: one group for each value.

    Raises:
        ConfigError: The granularity is unknown.
    """
    if granularity in _NAMES or re.fullmatch(r"group:[1-9]\d{0,6}", granularity):
        return granularity
    hint = did_you_mean(granularity, _NAMES)
    raise ConfigError(f"unknown granularity {granularity!r}{hint}; use {', '.join(_NAMES)} or group:64")


def group(x: Tensor, granularity: str) -> Tensor:
    """Returns the values of `x` as `(groups, n)`, as a view if possible.

    Examples:
        >>> import torch
        >>> weight = torch.zeros(8, 4, 3, 3)
        >>> [tuple(group(weight, g).shape) for g in ("tensor", "channel", "row", "column", "group:16")]
        [(1, 288), (8, 36), (96, 3), (36, 8), (24, 12)]
    """
    if granularity == "tensor" or x.dim() == 0:
        return x.reshape(1, -1)
    if granularity == "channel":
        return x.reshape(x.shape[0], -1)
    if granularity == "row":
        return x.reshape(-1, x.shape[-1])
    if granularity == "column":
        return x.reshape(x.shape[0], -1).t()
    if granularity == "element":
        return x.reshape(-1, 1)
    return x.reshape(-1, _group_size(x.numel() // x.shape[0], int(check_granularity(granularity)[6:])))


def ungroup(groups: Tensor, like: Tensor, granularity: str) -> Tensor:
    """Returns grouped values in their original shape, the inverse of `group`.

    Args:
        groups: Values from `group`, `(groups, n)`.
        like: Tensor of the original shape.
        granularity: As for `group`.
    """
    return (groups.t() if granularity == "column" and like.dim() else groups).reshape(like.shape)


def _group_size(length: int, most: int) -> int:
    return next(size for size in range(min(most, length), 0, -1) if length % size == 0)
