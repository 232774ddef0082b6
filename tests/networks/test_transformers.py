"""Networks of `transformers`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from .proof import Array, Case, check, told

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("in_turn")

WORDS = 90
SIZES: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96, "num_labels": 3
}  # fmt: skip


class _Logits(nn.Module):
    """Takes and returns a tensor, as a user would wrap a network of `transformers`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).logits
        return logits


def _vit() -> nn.Module:
    return _Logits(transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, hidden_dropout_prob=0.0, **SIZES)
    ))  # fmt: skip


def _bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS, max_position_embeddings=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SIZES
    )
    return _Logits(transformers.BertForSequenceClassification(config))


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(vocab_size=WORDS, max_position_embeddings=8, use_cache=False, **SIZES)
    return _Logits(transformers.LlamaForCausalLM(config))


def _words(count: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(count)
    y = rng.integers(0, 3, count)
    return rng.integers(1, WORDS // 3, (count, 6)) + WORDS // 3 * y[:, None], y


def _sentences(count: int) -> tuple[Array, Array]:
    words = [np.random.default_rng(count).integers(0, WORDS, count)]
    for _ in range(6):
        words.append((words[-1] + 7) % WORDS)
    return np.stack(words[:-1], 1), np.stack(words[1:], 1)


CASES = {
    "vit": Case(_vit, told(1, 8, 8), ("network.vit.embeddings.patch_embeddings.projection", "network.classifier")),
    "bert": Case(_bert, _words, ("network.bert.embeddings.word_embeddings", "network.classifier")),
    "llama": Case(_llama, _sentences, ("network.model.embed_tokens", "network.lm_head")),
}


@pytest.mark.parametrize("name", CASES)
def test_search_report_and_files(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)
