"""Cross-layer equalisation: makes the ranges of two consecutive layers' channels equal without changing the output."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from haq.layers import copied, reachable, replace_modules, run_sample, watched
from haq.layers.running import groups_of
from haq.quant.folding import fold_batch_norm
from haq.quant.graph import module_of, operation, pads_with_zeros, trace_graph
from haq.torch_internals import BatchNorm

__all__ = ["LayerPair", "equalize", "equalize_pair", "find_pairs", "input_ranges", "output_ranges"]

logger = logging.getLogger(__name__)

_ROUNDS = 200
_CONVERGED = 1e-4  # largest relative change of a channel in a round
_DEAD = 1e-8  # range of a channel, as a share of the layer's largest
_SETTLED = 5  # times that the bound on scales is recomputed, because it depends on them
_TOLERANCE = 1e-3  # as a share of the largest output
_TINY = 1e-30  # avoids division by a sum of zeros
_RELU6 = 6.0

Layer = nn.Conv2d | nn.Linear

_COMMUTING = (
    "relu", "identity", "dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "flatten", "contiguous", "mean",
)  # fmt: skip
"""Operations that map s·x to s·y, channel by channel, if they map x to y."""


class LayerPair(NamedTuple):
    """Two layers; only the second reads the output of the first.

    Attributes:
        first: Name of the layer whose output channels are divided by s.
        second: Name of the layer whose input channels are multiplied by s.
        clips: Names of the ReLU6 modules between them.
    """

    first: str
    second: str
    clips: tuple[str, ...]


def equalize(model: nn.Module, sample: Tensor, fold: bool = True) -> nn.Module:
    """Returns a copy of `model` in which the channels of consecutive layers have equal ranges.

    f(s·x) = s·f(x) for a ReLU, so channel j of the first layer may be divided by a scale if the second layer's weights
    for it are multiplied by the same scale (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and
    Bias Correction", arXiv:1906.04721, section 4.1, eq. 11). Pairs are visited in turn until the ranges converge, so
    that a depthwise convolution and both its neighbours, as in MobileNetV2, are equalised together. Only ReLU, pooling,
    dropout and flattening may lie between the layers of a pair. A layer whose output has another reader, such as a
    shortcut, is in no pair.

    If a channel's weights are small compared to its bias, the paper's scale makes its activations large, and with them
    the step that all channels share. So scales are bounded; see `_bounded`.

    A ReLU6 clips at 6 whatever the scale. The paper replaces it by a ReLU (section 5.1.1). So does this function, but
    only if no value of the sample reaches 6; other pairs are not equalised. High biases are not absorbed (section
    4.1.3), because that changes the function.

    Args:
        model: The float network.
        sample: Inputs, `(N, C, H, W)`, on which the result must agree with `model`; with more inputs, the choice of
            ReLU6s to replace is safer.
        fold: Whether batch norms are folded in the result. If not, the batch norms absorb the scales, for passes that
            read statistics of activations from them; after folding, both results are the same.

    Raises:
        ModelError: The network cannot be traced.
    """
    model = reachable(model, sample[:1])
    folded, original = fold_batch_norm(model, sample[:1]), copied(model).eval()
    pairs = find_pairs(folded, sample[:1])
    clipping, shares = _observed(folded, pairs, sample)
    chosen = [pair for pair in pairs if clipping.isdisjoint(pair.clips)]
    if len(chosen) < len(pairs):
        logger.info("%d of %d pairs are not equalised: their ReLU6 clips", len(pairs) - len(chosen), len(pairs))
    expected = run_sample(folded, sample)
    with torch.no_grad():
        scales = _converge(folded, chosen, shares)
    result = folded if fold else original
    if not fold:
        _carry(original, sample[:1], scales)
    clips = {result.get_submodule(clip) for pair in chosen for clip in pair.clips}
    result = replace_modules(result, {clip: nn.ReLU() for clip in clips})
    found = run_sample(result, sample)
    if torch.allclose(expected, found, rtol=_TOLERANCE, atol=_TOLERANCE * float(expected.abs().max())):
        return result
    logger.warning("layers are not equalised: the network's output would change")
    return fold_batch_norm(model, sample[:1]) if fold else copied(model).eval()


def _converge(model: nn.Module, pairs: list[LayerPair], shares: Mapping[LayerPair, Tensor]) -> dict[LayerPair, Tensor]:
    """Equalises in place until the scales converge, and returns the total scales of each pair."""
    scales: dict[LayerPair, Tensor] = {}
    squares = {pair: _by_input_channel(_layer(model, pair.second)).square().sum((1, 3)).flatten() for pair in pairs}
    for _ in range(_ROUNDS):
        change = 0.0
        for pair in pairs:
            first, second = _layer(model, pair.first), _layer(model, pair.second)
            before = scales.get(pair, torch.ones_like(squares[pair]))
            after = _bounded(before * _paper_scale(first, second), shares[pair], squares[pair])
            s = after / before
            _divide_outputs(first, s)
            _multiply_inputs(second, s)
            scales[pair] = after
            change = max(change, float((s - 1).abs().max()))
        if change < _CONVERGED:
            break
    return scales


def _bounded(scales: Tensor, shares: Tensor, squares: Tensor) -> Tensor:
    """Returns the scales, raised if they would make the rounding error of activations larger, `(m,)`.

    The step of the activations is proportional to max_j a_j/s_j, and the second layer multiplies its error by s_j·W2_j.
    So the error is max_j(a_j/s_j)·√(Σ s_j²·‖W2_j‖²), and max_j(a_j)·√(Σ ‖W2_j‖²) without equalisation. It does not
    grow if s_i ≥ a_i/max_j(a_j)·√(Σ s_j²·‖W2_j‖² / Σ ‖W2_j‖²).

    Args:
        scales: s, `(m,)`.
        shares: a_j/max_j(a_j), `(m,)`.
        squares: ‖W2_j‖² before equalisation, `(m,)`.
    """
    weights = squares / squares.sum().clamp_min(_TINY)
    for _ in range(_SETTLED):
        scales = torch.maximum(scales, shares * (scales.square() * weights).sum().sqrt())
    return scales


@torch.no_grad()
def _carry(model: nn.Module, sample: Tensor, scales: Mapping[LayerPair, Tensor]) -> None:
    """Scales a network whose batch norms are not folded; β/s and γ/s divide the output of a batch norm by s."""
    network = trace_graph(model, "cross-layer equalisation", sample)
    readers = {node.target: next(iter(node.users)) for node in network.graph.nodes if node.op == "call_module"}
    for pair, s in scales.items():
        first, norm = _layer(model, pair.first), module_of(readers[pair.first], network)
        _divide_outputs(norm if isinstance(norm, BatchNorm) and norm.affine else first, s)
        _multiply_inputs(_layer(model, pair.second), s)


@torch.no_grad()
def equalize_pair(first: Layer, second: Layer) -> Tensor:
    """Scales two layers in place, so that both have the same range for each channel between them.

    s_j = (1/r2_j)·√(r1_j·r2_j), with r1_j = max |W1| over output channel j and r2_j = max |W2| over input channel j. W1
    and its bias are divided by s, W2 is multiplied by s, and both ranges become √(r1_j·r2_j) (arXiv:1906.04721, eq.
    11). Channels with a range of 0 stay unchanged.

    Args:
        first: Layer with m output channels.
        second: Layer with m input channels, grouped or not.

    Returns:
        s, `(m,)`.
    """
    s = _paper_scale(first, second)
    _divide_outputs(first, s)
    _multiply_inputs(second, s)
    return s


def _paper_scale(first: Layer, second: Layer) -> Tensor:
    r1, r2 = output_ranges(first), input_ranges(second)
    alive = (r1 > _DEAD * r1.amax()) & (r2 > _DEAD * r2.amax())
    return torch.where(alive, (r1 / r2).sqrt(), torch.ones_like(r1))


def _divide_outputs(layer: Layer | BatchNorm, s: Tensor) -> None:
    layer.weight.div_(s.view(-1, *(1,) * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias.div_(s)


def _multiply_inputs(layer: Layer, s: Tensor) -> None:
    weight = _by_input_channel(layer)
    weight.mul_(s.view(len(weight), 1, -1, 1))


def output_ranges(layer: Layer) -> Tensor:
    """Returns max |W| of every output channel, `(out_channels,)`."""
    return layer.weight.detach().flatten(1).abs().amax(1)


def input_ranges(layer: Layer) -> Tensor:
    """Returns max |W| of every input channel, `(in_channels,)`."""
    return _by_input_channel(layer).abs().amax((1, 3)).flatten()


def find_pairs(model: nn.Module, sample: Tensor) -> list[LayerPair]:
    """Returns the pairs of layers that can be equalised, in the order of execution.

    Args:
        model: The network, in evaluation mode.
        sample: One input.

    Raises:
        ModelError: The network cannot be traced.
    """
    network = trace_graph(model, "cross-layer equalisation", sample)
    return [pair for node in network.graph.nodes if (pair := _pair_from(node, network)) is not None]


def _pair_from(node: fx.Node, network: fx.GraphModule) -> LayerPair | None:
    """Follows a layer's output through single readers to the next layer."""
    first = module_of(node, network)
    if not isinstance(first, Layer) or not _runs_once(node, network):
        return None
    clips: list[str] = []
    for reader in _only_readers(node):
        module = module_of(reader, network)
        if isinstance(module, Layer):
            fits = _runs_once(reader, network) and input_ranges(module).numel() == len(first.weight)
            return LayerPair(str(node.target), str(reader.target), tuple(clips)) if fits else None
        if isinstance(module, nn.ReLU6):
            if not _runs_once(reader, network):
                return None
            clips.append(str(reader.target))
        elif not (operation(reader, network) in _COMMUTING or pads_with_zeros(reader, network)):
            return None
    return None


def _only_readers(node: fx.Node) -> Iterator[fx.Node]:
    while len(node.users) == 1:
        (node,) = node.users
        yield node


def _runs_once(node: fx.Node, network: fx.GraphModule) -> bool:
    module = module_of(node, network)
    return sum(module_of(other, network) is module for other in network.graph.nodes) == 1


def _observed(model: nn.Module, pairs: list[LayerPair], sample: Tensor) -> tuple[set[str], dict[LayerPair, Tensor]]:
    """Runs the sample and returns the ReLU6s with an output of 6, and the channels' shares; see `_shares`."""
    reached: set[str] = set()
    shares: dict[LayerPair, Tensor] = {}

    clips = {model.get_submodule(clip): clip for pair in pairs for clip in pair.clips}
    seconds: dict[nn.Module, LayerPair] = {_layer(model, pair.second): pair for pair in pairs}

    def look(module: nn.Module, x: Tensor, y: Tensor) -> None:
        if float(y.max()) >= _RELU6:
            reached.add(clips[module])

    def read(module: nn.Module, x: Tensor) -> None:
        shares[seconds[module]] = _shares(x.transpose(0, 1 if isinstance(module, nn.Conv2d) else -1).flatten(1))

    with watched(clips, after=look), watched(seconds, before=read):
        run_sample(model, sample)
    return reached, shares


def _shares(x: Tensor) -> Tensor:
    """Returns each channel's magnitude as a share of the largest, for values `(m, n)`.

    It is the larger of two shares: that of the largest values, which determine the clip at high widths, and that of the
    root mean squares, which determine it at low widths.
    """
    largest, usual = x.abs().amax(1), x.square().mean(1).sqrt()
    return torch.maximum(largest / largest.amax().clamp_min(_TINY), usual / usual.amax().clamp_min(_TINY))


def _layer(model: nn.Module, name: str) -> Layer:
    return cast(Layer, model.get_submodule(name))


def _by_input_channel(layer: Layer) -> Tensor:
    """Views the weight as `(groups, out_channels / groups, in_channels / groups, kernel area)`."""
    groups = groups_of(layer)
    out_channels, in_channels = layer.weight.shape[:2]
    return layer.weight.detach().view(groups, out_channels // groups, in_channels, -1)
