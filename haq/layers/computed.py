"""Turns weights that a parametrization or an older hook computes at every call into plain parameters."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import remove_spectral_norm
from torch.nn.utils.weight_norm import remove_weight_norm

from haq.torch_internals import SpectralNorm, WeightNorm, children_of, forget_loading_hooks, pre_hooks, pruned_name

__all__ = ["bake", "has_computed_weights"]

_HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)


def has_computed_weights(module: nn.Module) -> bool:
    """Whether one of the module's own parameters is computed from others."""
    return parametrize.is_parametrized(module) or any(isinstance(h, _HOOKS) for h in pre_hooks(module))


def bake(module: nn.Module) -> None:
    """Replaces computed weights, in place, by parameters with their values; call it in evaluation mode."""
    if parametrize.is_parametrized(module):
        values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
        # Not `remove_parametrizations`: it deletes the property from a class that the copy shares with the original
        module.__class__ = parametrize.type_before_parametrizations(module)
        del children_of(module)["parametrizations"]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))
    for hook in pre_hooks(module):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            forget_loading_hooks(module)  # PyTorch wraps its own hooks, and then does not find them
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, pruned_name(hook))  # type: ignore[no-untyped-call]
