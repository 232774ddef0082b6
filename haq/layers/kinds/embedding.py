"""Tables of embeddings, of which rows are looked up."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers.kinds.base import LayerKind
from haq.layers.spec import LayerSpec

__all__ = ["EMBEDDING"]


class _Embedding(LayerKind):
    """`nn.Embedding` and `nn.EmbeddingBag`; weight `(rows, M)`, with a scale for each row; inputs are indices.

    Tables with `max_norm` are left out: PyTorch changes their weight whenever a row is looked up.
    """

    types = (nn.Embedding, nn.EmbeddingBag)
    reads_values = False

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is None

    def describe(self, name: str, layer: Any, x: Tensor, y: Tensor) -> LayerSpec:
        rows, channels = layer.weight.shape
        lookups = x.numel() if isinstance(x, Tensor) else y.numel() // channels  # a class of a user's may take others
        return LayerSpec(
            name, "embedding", rows, channels, (1, 1), (1, 1), (0, 0), (1, 1), 1, (lookups, 1),
            (y.numel() // channels, 1), 0, rows * channels, 0,
        )  # fmt: skip

    def run(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **named: Any) -> Tensor:
        if isinstance(layer, nn.Embedding):
            return F.embedding(x, weight, layer.padding_idx, scale_grad_by_freq=layer.scale_grad_by_freq)
        offsets = rest[0] if rest else named.get("offsets")
        each = rest[1] if len(rest) > 1 else named.get("per_sample_weights")
        y: Tensor = F.embedding_bag(
            x, weight, offsets, scale_grad_by_freq=layer.scale_grad_by_freq, mode=layer.mode, per_sample_weights=each,
            include_last_offset=layer.include_last_offset, padding_idx=layer.padding_idx,
        )  # fmt: skip
        return y


EMBEDDING = _Embedding()
