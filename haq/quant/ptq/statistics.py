"""Statistics of layers' inputs from batch norms, without data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from haq.layers.running import groups_of
from haq.quant.graph import argument, module_of, operation, pads_with_zeros, trace_graph
from haq.torch_internals import BatchNorm

__all__ = ["ClippedNormal", "clipped_normal_moments", "input_statistics"]

_INFINITY = float("inf")
_END = 2**63 - 1  # how an exported graph writes the end of a slice that has none
_FAR = 40.0  # standard deviations beyond which a normal density is 0 in double precision

_CLIPS = {"relu": (0.0, _INFINITY), "relu6": (0.0, 6.0)}
_KEEPING = ("identity", "dropout", "avg_pool2d", "adaptive_avg_pool2d", "flatten", "mean", "contiguous")


@dataclass(frozen=True)
class ClippedNormal:
    """Distribution of the values of each channel: normal, then clipped to [low, high].

    Attributes:
        mean: Mean of the normal distribution, `(channels,)`.
        std: Its standard deviation, `(channels,)`.
        low: 0 after a ReLU.
        high: 6 after a ReLU6.
        exact: Whether the statistics come from a batch norm; otherwise only the range is usable.
    """

    mean: Tensor
    std: Tensor
    low: float = -_INFINITY
    high: float = _INFINITY
    exact: bool = True

    def moments(self) -> tuple[Tensor, Tensor]:
        """Returns mean and variance after clipping, `(channels,)` each."""
        return clipped_normal_moments(self.mean, self.std, self.low, self.high)

    def clipped(self, low: float, high: float) -> ClippedNormal:
        """Returns the values clipped once more."""
        return replace(self, low=max(low, self.low), high=min(high, self.high))

    def __add__(self, other: ClippedNormal) -> ClippedNormal:
        """Returns the sum of both as a normal distribution with its mean and variance, as if they were independent."""
        (mean, var), (other_mean, other_var) = self.moments(), other.moments()
        low = self.low + other.low
        return ClippedNormal(
            mean + other_mean, (var + other_var).sqrt(), low, self.high + other.high, self.exact and other.exact
        )


def clipped_normal_moments(mean: Tensor, std: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Returns the mean and variance of clip(x, low, high) for x ~ N(mean, std²), `(channels,)` each.

    With α = (a − μ)/σ and β = (b − μ)/σ for the clip [a, b],
    E = σ(φ(α) − φ(β)) + μ(Φ(β) − Φ(α)) + a·Φ(α) + b·(1 − Φ(β)) (Nagel et al. 2019, arXiv:1906.04721, appendix C, eq.
    30–34); for a ReLU, a = 0 and b = ∞, this is its eq. 19.

    Args:
        mean: μ, `(channels,)`.
        std: σ, `(channels,)`, not negative.
        low: a, may be −∞.
        high: b, may be ∞.
    """
    mu, sigma = mean.double(), std.double().clamp_min(1e-12)
    alpha, beta = (((bound - mu) / sigma).clamp(-_FAR, _FAR) for bound in (low, high))
    below, above = torch.special.ndtr(alpha), torch.special.ndtr(-beta)
    inside = 1 - below - above
    at_low, at_high = (torch.exp(-t.square() / 2) / (2 * torch.pi) ** 0.5 for t in (alpha, beta))
    a, b = (bound if abs(bound) < _INFINITY else 0.0 for bound in (low, high))  # the mass out there is 0
    first = sigma * (at_low - at_high) + mu * inside + a * below + b * above
    second = (
        (mu.square() + sigma.square()) * inside
        + 2 * mu * sigma * (at_low - at_high)
        + sigma.square() * (alpha * at_low - beta * at_high)
        + a * a * below
        + b * b * above
    )
    return first.to(mean.dtype), (second - first.square()).clamp_min(0).to(mean.dtype)


def input_statistics(model: nn.Module, sample: Tensor, image: ClippedNormal | None = None) -> dict[str, ClippedNormal]:
    """Returns the distribution of each layer's input values, as far as it is known.

    After a batch norm a channel has mean β and standard deviation |γ| (arXiv:1906.04721, section 4.2.1). ReLUs clip the
    distribution, averages and flattening keep it, and sums add means and variances. After a layer without batch norm,
    and after a maximum, the distribution is an estimate, `exact=False`. After any other operation it is unknown, and
    layers that read such values are missing.

    Args:
        model: The float network, with its batch norms.
        sample: One input, for tracing.
        image: Distribution of the network's input; without it, the first layer is missing.

    Raises:
        ModelError: The network cannot be traced.
    """
    network = trace_graph(model, "reading batch-norm statistics", sample)
    known: dict[fx.Node, ClippedNormal] = {}
    found: dict[str, ClippedNormal] = {}
    for node in network.graph.nodes:
        if node.op == "placeholder" and image is not None:
            known[node] = image
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        inputs = [known.get(argument) for argument in node.all_input_nodes]
        module = module_of(node, network)
        if isinstance(module, nn.Conv2d | nn.Linear) and inputs[0] is not None and _fits(inputs[0], module):
            found[cast(str, node.target)] = inputs[0]
        if (values := _behind(node, module, inputs, network)) is not None:
            known[node] = values
    return found


def _behind(
    node: fx.Node, module: nn.Module | None, inputs: list[ClippedNormal | None], network: fx.GraphModule
) -> ClippedNormal | None:
    if isinstance(module, BatchNorm):
        return _of_batch_norm(module)
    if not inputs or any(x is None for x in inputs):
        return None
    first, *others = cast(list[ClippedNormal], inputs)
    name = operation(node, network)
    if name in _CLIPS:
        return first.clipped(*_CLIPS[name])
    if name == "add":
        same = len(others) == 1 and not node.kwargs and first.mean.shape == others[0].mean.shape
        return first + others[0] if same else None
    if name in _KEEPING:
        return first
    if name == "max_pool2d":
        return replace(first, exact=False)
    if name in ("getitem", "slice"):
        return first if _subsamples(node, name) else None
    if pads_with_zeros(node, network):
        return _padded(node, first)
    if isinstance(module, nn.Conv2d | nn.Linear) and _fits(first, module):
        return _through(module, first)
    return None


def _of_batch_norm(norm: BatchNorm) -> ClippedNormal:
    if norm.affine:
        return ClippedNormal(norm.bias.detach(), norm.weight.detach().abs())
    return ClippedNormal(torch.zeros(norm.num_features), torch.ones(norm.num_features))


def _fits(values: ClippedNormal, layer: nn.Conv2d | nn.Linear) -> bool:
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    return values.mean.numel() == channels


def _subsamples(node: fx.Node, name: str) -> bool:
    """Whether positions are left out, and no samples or channels, as in parameter-free shortcuts."""
    if name == "slice":
        axis = argument(node, 1, "dim", 0)
        return axis >= 2 or list(node.args[2:]) == [0, _END]
    what, whole = node.args[1], slice(None)
    return isinstance(what, tuple) and what[:2] == (whole, whole)


def _padded(node: fx.Node, values: ClippedNormal) -> ClippedNormal | None:
    """Adds zeros at the borders, which are ignored as in a convolution, or channels of zeros as shortcuts do."""
    sides = list(cast(Any, node.args[1]))
    if len(sides) == 4:
        return values
    if len(sides) != 6 or any(sides[:4]) or not all(isinstance(side, int) for side in sides):
        return None
    # Such a channel is a normal distribution with mean and deviation 0
    return replace(values, mean=F.pad(values.mean, sides[4:]), std=F.pad(values.std, sides[4:]))


def _through(layer: nn.Conv2d | nn.Linear, values: ClippedNormal) -> ClippedNormal:
    """Returns the distribution of a layer's outputs, as if its inputs were independent."""
    mean, var = values.moments()
    groups = groups_of(layer)
    weight = layer.weight.detach().flatten(2) if layer.weight.dim() > 2 else layer.weight.detach()[..., None]
    rows = weight.view(groups, -1, *weight.shape[1:])
    out_mean = torch.einsum("gock,gc->go", rows, mean.view(groups, -1)).flatten()
    out_var = torch.einsum("gock,gc->go", rows.square(), var.view(groups, -1)).flatten()
    bias = 0.0 if layer.bias is None else layer.bias.detach()
    return ClippedNormal(out_mean + bias, out_var.sqrt(), exact=False)
