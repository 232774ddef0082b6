"""The curvature of the loss for every layer's weights and inputs: traces of its Hessian, by Hutchinson's estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.data import IGNORED
from haq.errors import ModelError
from haq.layers import copied, quantizable_layers, watched

__all__ = ["Curvature", "curvature"]


@dataclass(frozen=True, eq=False)
class Curvature:
    """Of the cross-entropy summed over a batch.

    Attributes:
        weights: `(layers,)`, trace of the Hessian for the layer's weights.
        inputs: `(layers,)`, the same for the layer's input, summed over samples and calls.
        read: Inputs of each layer, a tensor for each call.
    """

    weights: NDArray[np.float64]
    inputs: NDArray[np.float64]
    read: dict[str, list[Tensor]]


def curvature(
    model: nn.Module, layers: Sequence[str], x: Tensor, probes: int, rng: torch.Generator, y: Tensor | None = None
) -> Curvature:
    """Estimates the traces of the diagonal blocks of the Hessian with random signs.

    HAWQ-V2 (Dong et al. 2019, arXiv:1911.03852) takes Tr(H) = E[zᵀHz] with z of the size of the weights, and two
    backward passes for a product Hz. Deviation: with the Jacobian J of the outputs and S = diag(p) − p·pᵀ = A·Aᵀ, the
    Hessian of the cross-entropy for the outputs, this takes Tr(JᵀSJ) = E[‖JᵀAz‖²] with z of the size of the outputs.
    One backward pass then serves the weights and inputs of all layers, no estimate is negative, and layers do not
    disturb each other (FIT, Zandonati et al. 2022, arXiv:2210.08502, prefers such traces for this). The term that is
    left out, Σ ∂loss/∂yᵢ·∇²yᵢ, is zero for a layer that is called once, if all activation functions are piecewise
    linear: the outputs are then piecewise linear in the layer's weights and inputs. S needs no labels (generalised
    Gauss-Newton matrix and Fisher information: Martens 2014, arXiv:1412.1193).

    Args:
        model: In evaluation mode; it is not changed.
        layers: Names.
        x: `(N, …)`.
        probes: Number of vectors z for each sample.
        rng: Draws the vectors.
        y: Labels, `(N,)` or `(N, T)`; answers at positions that are `IGNORED` do not count.

    Raises:
        ModelError: The network's outputs are not finite.
    """
    model = copied(model).requires_grad_(False)
    modules = {name: layer for name, layer in quantizable_layers(model) if name in layers}
    names: dict[nn.Module, str] = {layer: name for name, layer in modules.items()}
    read: dict[str, list[Tensor]] = {name: [] for name in layers}
    shifts: list[tuple[str, Tensor]] = []

    def shift(module: nn.Module, x: Tensor) -> Tensor:
        """Adds zeros that only this layer reads, so that their derivatives are those of its input."""
        if not x.is_floating_point():  # indices
            read[names[module]].append(x)
            return x
        zeros = torch.zeros_like(x, requires_grad=True)
        shifts.append((names[module], zeros))
        read[names[module]].append(x.detach().clone())
        return x + zeros

    for layer in modules.values():
        layer.weight.requires_grad_(True)
    with torch.enable_grad(), watched(modules.values(), before=shift):
        outputs = model(x.clone())
    if not bool(torch.isfinite(outputs).all()):
        raise ModelError("the float network gives NaN or infinite outputs; check its weights and the data")
    variables = [layer.weight for layer in modules.values()] + [zeros for _, zeros in shifts]
    owners = [(name, 0) for name in modules] + [(name, 1) for name, _ in shifts]
    p = outputs.detach().softmax(-1)
    row = {name: number for number, name in enumerate(layers)}
    traces = np.zeros((len(layers), 2))
    for _ in range(probes):
        z = torch.randint(0, 2, p.shape, generator=rng, dtype=p.dtype).mul_(2).sub_(1)
        root = p.sqrt() * z  # A = diag(√p) − p·√pᵀ
        if y is not None:
            root[y == IGNORED] = 0
        products = torch.autograd.grad(
            outputs, variables, root - p * root.sum(-1, keepdim=True), retain_graph=True, materialize_grads=True
        )
        for (name, which), product in zip(owners, products, strict=True):
            traces[row[name], which] += float(product.square().sum(dtype=torch.float64)) / probes
    return Curvature(traces[:, 0], traces[:, 1], read)
