"""Networks by name, and users' own networks and weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from haq.errors import ModelError, did_you_mean, first_names
from haq.io.prefixes import MODEL_SOURCES, one_line, refuse_object, source_of
from haq.io.tensors import read_tensors
from haq.io.user_code import call_named, is_reference
from haq.layers import copied
from haq.models.huggingface import load_transformers
from haq.models.zoos import load_timm, load_torchvision
from haq.registry import MODELS

__all__ = ["get_model", "list_models", "load_model", "load_weights"]

_SOURCES: dict[str, Callable[[str], nn.Module]] = dict(
    zip(MODEL_SOURCES, (load_transformers, load_timm, load_torchvision), strict=True)
)


def list_models() -> list[str]:
    """Returns the names that `get_model` knows."""
    return sorted(MODELS)


def get_model(name: str, num_classes: int | None = None, in_channels: int | None = None) -> nn.Module:
    """Returns a built-in network with random weights.

    Args:
        name: One of `list_models()`.
        num_classes: Number of outputs; `None` for the network's default.
        in_channels: Number of image channels; `None` for the network's default.

    Raises:
        ModelError: The name is unknown.
    """
    if name not in MODELS:
        known = ", ".join([*list_models(), *(f"{source}:NAME" for source in MODEL_SOURCES)])
        raise ModelError(
            f"unknown model {name!r}{did_you_mean(name, MODELS)}; use {known}, file.py:function or module:function"
        )
    options = {"num_classes": num_classes, "in_channels": in_channels}
    network: nn.Module = MODELS[name](**{key: value for key, value in options.items() if value is not None})
    return network


def load_model(spec: str | nn.Module, weights: str | None, num_classes: int, in_channels: int) -> nn.Module:
    """Returns a network in evaluation mode and in float32, whatever the type of its weights.

    Args:
        spec: A built-in name; `hf:`, `timm:` or `torchvision:` followed by a name from there; `file.py:function` or
            `package.module:function`, whose code is run; or the network itself, which is copied.
        weights: File of a state dict to load; a built-in network needs one.
        num_classes: Number of outputs of a built-in network.
        in_channels: Number of image channels of a built-in network.

    Raises:
        ModelError: The model or its weights cannot be loaded, or hold NaN or infinite values.
    """
    if isinstance(spec, nn.Module):
        return _ready(copied(spec), type(spec).__name__, weights)
    refuse_object("model", spec, ModelError)
    source, name = source_of(spec)
    if source in _SOURCES:
        model = _SOURCES[source](name)
    elif is_reference(spec):
        model = call_named(spec, "model", ModelError)
        if not isinstance(model, nn.Module):
            raise ModelError(f"model function {spec!r} returned {type(model).__name__}, not a torch.nn.Module")
    else:
        model = get_model(spec, num_classes, in_channels)
        if weights is None:
            raise ModelError(f"model {spec!r} has no weights yet; give --weights FILE")
    return _ready(model, spec, weights)


def _ready(model: nn.Module, spec: str, weights: str | None) -> nn.Module:
    """Loads weights, and refuses a network whose weights cannot be used."""
    if lazy := [name for name, values in model.state_dict().items() if is_lazy(values)]:
        raise ModelError(f"weight {lazy[0]!r} of {spec!r} has no shape yet; run the model once before it is used")
    if weights is not None:
        load_weights(model, Path(os.path.expanduser(weights)))
    for key, values in model.state_dict().items():
        if isinstance(values, Tensor) and values.is_meta:
            raise ModelError(f"weight {key!r} of {spec!r} has a shape but no values; create the model on a real device")
        if isinstance(values, Tensor) and values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise ModelError(f"weight {key!r} of {spec!r} has NaN or infinite values; train or load it again")
    return model.float().eval()  # everything here computes in float32, which represents half precision exactly


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict, bare or under the key `state_dict`, without running code from the file.

    Raises:
        ModelError: The file cannot be read, or names and shapes do not fit.
    """
    if not path.is_file():
        raise ModelError(f"weights file {str(path)!r} does not exist")
    try:
        content = read_tensors(path)
    except Exception:  # torch.load raises many kinds of errors, which advise loading the file unsafely
        raise ModelError(
            f"cannot read weights {str(path)!r}: it is damaged or not a plain state dict; "
            "save one with torch.save(model.state_dict(), FILE)"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ModelError(f"weights {str(path)!r} hold {type(content).__name__}, not a state dict of tensors")
    own = model.state_dict()
    state = {name if name in own else name.removeprefix("module."): value for name, value in state.items()}
    if problems := _misfits(model, state):
        raise ModelError(f"weights {str(path)!r} do not fit {type(model).__name__}: {'; '.join(problems)}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # sparse tensors, and tensors that have only a shape
        raise ModelError(f"weights {str(path)!r} do not fit {type(model).__name__}: {one_line(error)}") from None


def _misfits(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    own = model.state_dict()
    shapes = [
        f"{name} is {tuple(state[name].shape)} but should be {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    kinds = [name for name in own if name in state and state[name].is_complex() != own[name].is_complex()]
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    found = {"missing": missing, "unknown": unknown, "of another shape": shapes, "of complex numbers": kinds}
    return [f"{len(names)} {what}: {first_names(names)}" for what, names in found.items() if names]
