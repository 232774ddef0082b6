"""Turns weights that a parametrization or an older hook computes at every call into plain parameters."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

__all__ = ["bake", "has_computed_weights"]

_HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)


def has_computed_weights(module: nn.Module) -> bool:
    """Whether one of the module's own parameters is computed from others."""
    return parametrize.is_parametrized(module) or any(isinstance(h, _HOOKS) for h in module._forward_pre_hooks.values())


def bake(module: nn.Module) -> None:
    """Replaces computed weights, in place, by parameters with their values; call it in evaluation mode."""
    if parametrize.is_parametrized(module):
        values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
        # Not `remove_parametrizations`: it deletes the property from a class that the copy shares with the original
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            module._load_state_dict_pre_hooks.clear()  # PyTorch wraps its own hooks, and then does not find them
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
