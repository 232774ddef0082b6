"""Networks from Hugging Face's `transformers`: image classifiers and causal language models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from haq.errors import ModelError, first_names
from haq.io.prefixes import hugging_face

__all__ = ["load_transformers"]


def load_transformers(name: str) -> nn.Module:
    """Returns a pretrained network that maps a tensor to a tensor; its layers keep their names.

    An image classifier maps `(N, C, H, W)` to `(N, classes)`, a language model tokens `(N, T)` to `(N, T, words)`.
    Weights are read from safetensors, or with `weights_only=True`; code in a repository is never run.

    Args:
        name: A folder, or a name on the hub.

    Raises:
        ModelError: The network cannot be loaded, is of another kind, or lacks weights.
    """
    asked = f"model 'hf:{name}'"
    fix = "give the folder or hub name of an image classifier or causal language model that save_pretrained wrote"
    with hugging_face("transformers", asked, name, ModelError, fix) as transformers:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        if type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            reads, kind = "pixel_values", transformers.AutoModelForImageClassification
        elif type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            reads, kind = "input_ids", transformers.AutoModelForCausalLM
        else:
            raise ModelError(f"{asked} is of type {config.model_type!r}; {fix}")
        for key, value in vars(config).items():  # attention calls dropout as a function, which cannot be turned off
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)
        model, info = kind.from_pretrained(
            name, config=config, dtype=torch.float32, weights_only=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{asked} lacks {len(missing)} weights: {first_names(missing)}; {fix}")
    assert isinstance(model, nn.Module)
    for path, module in list(model.named_modules()):
        if type(module).__name__ == "Conv1D":
            model.set_submodule(path, _linear(module))
    return _between_tensors(model, reads)


def _linear(layer: Any) -> nn.Linear:
    """Returns GPT-2's `Conv1D` as a linear layer; its weight is stored transposed."""
    features_in, features_out = layer.weight.shape
    linear = nn.Linear(features_in, features_out, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().T.contiguous())
    linear.bias = layer.bias
    return linear


def _between_tensors(model: nn.Module, reads: str) -> nn.Module:
    """Makes the network take and return plain tensors, in place.

    Its class is replaced by a subclass, because a wrapper module would prefix the name of every layer.
    """
    kind: Any = type(model)
    options = {"return_dict": True} | ({"use_cache": False} if reads == "input_ids" else {})

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        logits: Tensor = kind.forward(self, **{reads: x}, **options).logits
        return logits

    model.__class__ = type(
        kind.__name__, (kind,), {"forward": forward, "__module__": __name__, "__doc__": kind.__doc__}
    )
    return model
