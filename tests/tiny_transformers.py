"""Small networks of `transformers` in folders, as a user would save them, and data for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "past", "red", "hat", "while", "old", "man"]
PIECE = 16


def digits_32(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 colour pictures `(count, 32, 32, 3)` of digits, and their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.round(bunch.images[:count] * (255 / 16)).astype(np.uint8)
    return np.repeat(x.repeat(4, 1).repeat(4, 2)[..., None], 3, 3), bunch.target[:count]


def save_vit(folder: Path, labels: int = 10, steps: int = 0) -> Path:
    """A vision transformer with two blocks, trained for some steps, and its image processor."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    model = ViTForImageClassification(ViTConfig(**sizes, intermediate_size=64, patch_size=8, num_labels=labels))
    x, y = digits_32(512)
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        chosen = torch.arange(step * 64, step * 64 + 64) % 512
        optimizer.zero_grad()
        model(pixels[chosen], labels=torch.from_numpy(y)[chosen]).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def text(count: int) -> str:
    """Sentences whose words follow each other by a rule, most of the time."""
    rng = np.random.default_rng(0)
    words = [0]
    for surprise in rng.random(count - 1):
        words.append(int(rng.integers(len(WORDS))) if surprise < 0.2 else (words[-1] * 3 + 1) % len(WORDS))
    return " ".join(WORDS[word] for word in words)


def save_language_model(folder: Path, kind: str = "llama", steps: int = 0) -> Path:
    """A language model with tied embeddings and a tokenizer that splits at blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*dict.fromkeys(WORDS), "[UNK]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    model: Any
    if kind == "llama":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(
            LlamaConfig(**sizes, vocab_size=len(vocabulary), max_position_embeddings=PIECE, tie_word_embeddings=True)
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=PIECE, vocab_size=len(vocabulary))
        )
    tokens = torch.tensor([vocabulary[word] for word in text(64 * PIECE).split()]).view(64, PIECE)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder
