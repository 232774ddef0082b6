"""Linear layers, also those that other modules are made of: gates of a recurrent layer, projections of attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_linear_bn_weights

from haq.layers.kinds.base import LayerKind
from haq.layers.spec import LayerSpec

__all__ = ["LINEAR"]


class _Linear(LayerKind):
    """`nn.Linear`; weight `(M, K)`, input `(..., K)`."""

    types = (nn.Linear,)
    folds_norm = True
    fuse = staticmethod(fuse_linear_bn_weights)

    def describe(self, name: str, layer: Any, x: Tensor, y: Tensor) -> LayerSpec:
        rows = math.prod(x.shape[:-1])  # windows and tokens may be folded into the batch dimension, which starts as 1
        params = layer.weight.numel()
        return LayerSpec(
            name, "linear", layer.in_features, layer.out_features, (1, 1), (1, 1), (0, 0), (1, 1), 1, (rows, 1),
            (rows, 1), rows * params, params, 0 if layer.bias is None else layer.bias.numel(),
        )  # fmt: skip

    def run(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **named: Any) -> Tensor:
        return F.linear(x, weight, bias)

    def count(self, layer: Any, x: Tensor) -> int:
        return x.numel() // x.shape[-1]

    def columns(self, layer: Any, x: Tensor, chosen: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])[chosen].t()[None]

    def windows(self, layer: Any, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2)[:, None]

    def examples(self, layer: Any, generator: torch.Generator) -> list[Tensor]:
        return [torch.randn(*shape, layer.in_features, generator=generator) for shape in ((2,), (2, 3))]


LINEAR = _Linear()
