"""Brings a network into the form in which it is searched, measured and exported.

In that form its layers are called, and compute with the weight that they hold.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers.computed import bake, has_computed_weights
from haq.layers.copying import copied, replace_module
from haq.layers.kinds import known_kind
from haq.layers.own_forward import StaysFloat
from haq.layers.reads import CallsRead, Reads, find_reads
from haq.layers.running import Sample, evaluating, fresh, run_sample, same_randomness
from haq.layers.settling import is_settled, settle
from haq.layers.splitting.attention import call_layers, has_fast_path
from haq.layers.splitting.bare_weights import BareWeight, find_bare, hold_bare
from haq.layers.splitting.recurrent import is_recurrent, split_recurrent
from haq.layers.variants import Variant, become
from haq.torch_internals import inside_name, is_compiled, tree_leaves, uncompile

__all__ = ["reachable"]

_SAME = 1e-4
"""Allowed difference, as a share of the largest output: fused kernels and precomputed weights round differently."""

_settled: WeakKeyDictionary[nn.Module, tuple[tuple[BareWeight, ...], Reads]] = WeakKeyDictionary()
"""Findings on each network from a sample, for later calls without one."""


class KeepsInput(Variant):
    """Mixed into a network that changes its input in place, so that it changes a copy instead."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the network's own forward pass on copies of the tensors."""
        args, kwargs = fresh((args, kwargs))
        return super().forward(*args, **kwargs)


def reachable(model: nn.Module, sample: Sample | None = None) -> nn.Module:
    """Returns `model`, or a copy of it in which all layers are called and compute with their own weight.

    - Wrappers are removed: `torch.compile`, `DataParallel`.
    - Computed weights (`weight_norm`, `spectral_norm`, pruning, any parametrization) become plain parameters.
    - Layers with their own forward pass compute with the weight that they hold; see `own_forward`.
    - PyTorch's recurrent networks and cells call a layer for each of their weights; see `recurrent`.
    - PyTorch's attention calls a layer for each of its weights, and does not use a fused kernel.
    - With a sample: a parameter that a module of the user's multiplies with becomes a layer; see `bare_weights`.
    - With a sample: a layer is called if the network only reads its weight, and the network no longer changes its
      input.

    If there is nothing to do, the model itself is returned, so the function can be applied to its own result.

    Args:
        model: Any network; it is not changed.
        sample: One input, as for `trace`. The findings are remembered for later calls without a sample.

    Raises:
        ModelError: The network cannot be rebuilt (TorchScript), its outputs would change, or the weight of a layer is
            read in a way that no quantizer can follow.
    """
    _check_opens(model)
    bare, reads = _settled.get(model, ((), Reads()))
    network = _made_plain(model)
    if sample is not None:
        bare = find_bare(network, sample)
    if bare:
        network = copied(network) if network is model else network
        hold_bare(network, bare)
    if sample is not None:
        if network is not model:
            _check_same(model, network, sample)
        reads = find_reads(network, sample)
        _settled[model] = bare, reads
    if reads.floating:
        network = copied(network) if network is model else network
        for name in reads.floating:
            become(network.get_submodule(name), StaysFloat)
    added = [kind for kind, needed in ((CallsRead, reads.layers), (KeepsInput, reads.changes_input)) if needed]
    if added:
        network = copied(network) if network is model else network
        become(network, *added)
        network.read_layers = reads.layers  # type: ignore[assignment]
    if network is not model:
        _settled[network] = (), Reads()
    return network


def _check_opens(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"module {name!r} of {type(model).__name__}" if name else "the model"
            raise ModelError(f"{what} is TorchScript, whose layers are fixed code; give the nn.Module it was made from")


def _made_plain(model: nn.Module) -> nn.Module:
    if not any(_hides(module) for module in model.modules()):
        return model
    network = _unwrapped(copied(model))
    with evaluating(network):  # in training mode, reading a spectral-norm weight would advance its power iteration
        for name, module in list(network.named_modules()):
            if has_computed_weights(module):
                bake(module)
            if has_fast_path(module):
                call_layers(module)
            if is_recurrent(module):
                split_recurrent(module)
            if _unsettled(module):
                settle(name, module)
    return network


def _hides(module: nn.Module) -> bool:
    several = has_fast_path(module) or is_recurrent(module)
    return several or _unsettled(module) or _is_wrapped(module) or has_computed_weights(module)


def _unsettled(module: nn.Module) -> bool:
    return known_kind(module) is not None and not is_settled(module)


def _is_wrapped(module: nn.Module) -> bool:
    return inside_name(module) is not None or is_compiled(module)


def _unwrapped(network: nn.Module) -> nn.Module:
    while True:
        wrapped = next(((module, held) for module in network.modules() if (held := inside_name(module))), None)
        if wrapped is None:
            break
        wrapper, held = wrapped
        network = replace_module(network, wrapper, getattr(wrapper, held))
    for module in network.modules():
        uncompile(module)
    return network


def _check_same(model: nn.Module, network: nn.Module, sample: Sample) -> None:
    with same_randomness():
        expected = tree_leaves(run_sample(model, sample))
    with same_randomness():
        found = tree_leaves(run_sample(network, sample))
    for a, b in zip(expected, found, strict=True):
        if isinstance(a, Tensor) and not torch.allclose(a, b, rtol=_SAME, atol=_SAME * float(a.abs().max())):
            raise ModelError(
                f"{type(model).__name__} gives different outputs when its layers are called one by one (by up to "
                f"{float((a - b).abs().max()):.3g}); give a model without fused kernels, wrappers and computed weights"
            )
