"""Finds layers that read one tensor, such as the three projections of an attention."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor, nn

from haq.layers.reaching import reachable
from haq.layers.running import Sample, quantizable_layers, run_sample, watched
from haq.torch_internals import writes

__all__ = ["find_shared_inputs"]


def find_shared_inputs(model: nn.Module, sample: Sample) -> list[tuple[str, ...]]:
    """Runs a sample, and lists the groups of layers that read the same values in memory.

    A view of a tensor is the same tensor if it has all its values, as after `flatten`. A tensor that is written to in
    place is another one afterwards. Whole numbers, such as tokens, are left out: nothing quantizes them.

    Args:
        model: Any module.
        sample: One input, or a tuple of positional inputs.

    Returns:
        Names of two layers or more each, in the order of their calls. A layer that is called several times is in a
        group for each call whose input it shares, so groups may overlap.

    Raises:
        ModelError: The model fails on the sample.
    """
    network = reachable(model, sample)
    names: dict[nn.Module, str] = {layer: name for name, layer in quantizable_layers(network)}
    readers: dict[Hashable, dict[str, None]] = {}
    alive: list[Tensor] = []  # so that no memory is used twice

    def record(layer: nn.Module, x: Tensor) -> None:
        if x.is_floating_point():
            alive.append(x)
            readers.setdefault(_place(x), {})[names[layer]] = None

    with watched(names, before=record):
        run_sample(network, sample)
    return [tuple(group) for group in readers.values() if len(group) > 1]


def _place(x: Tensor) -> Hashable:
    """Returns what two tensors have in common if they hold the same values in memory."""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    form = () if reach == x.numel() else (x.shape, x.stride())  # without gaps, its form does not matter
    return x.untyped_storage().data_ptr(), x.storage_offset(), x.numel(), writes(x), form
