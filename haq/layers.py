"""What a search knows about each layer of a network: shapes, weights and multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from haq.errors import ModelError
from haq.records import restored

if TYPE_CHECKING:  # torch takes over a second to import, and reports and exports read layers without it
    from torch import Size, Tensor, nn

__all__ = ["LayerKind", "LayerSpec", "evaluating", "quantizable_layers", "run_sample", "trace"]

LayerKind = Literal["conv", "depthwise", "grouped", "linear"]
Pair = tuple[int, int]


@dataclass(frozen=True)
class LayerSpec:
    """One quantizable layer, as seen with one input sample.

    Attributes:
        name: Module path, as in `model.named_modules()`.
        kind: `depthwise` has one input channel per group; `grouped` has several groups of several channels.
        in_channels: Input channels (features of a linear layer).
        out_channels: Output channels (features of a linear layer).
        kernel: Height and width; `(1, 1)` for a linear layer, as are `stride` and `dilation`.
        padding: `(height, width)` zeros on each side.
        groups: Number of groups; 1 for a linear layer.
        in_size: Input feature map, `(height, width)`; `(rows, 1)` for a linear layer, of its first call.
        out_size: Output feature map, likewise.
        macs: Multiply-accumulates for one sample, summed over all calls of the module.
        params: Number of weights, biases not counted.
        biases: Number of biases.
    """

    name: str
    kind: LayerKind
    in_channels: int
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    in_size: Pair
    out_size: Pair
    macs: int
    params: int
    biases: int

    def __post_init__(self) -> None:
        for field in ("in_channels", "out_channels", "groups", "macs", "params"):
            if getattr(self, field) < 1:
                raise ModelError(f"layer {self.name!r}: {field} must be at least 1, but got {getattr(self, field)}")

    @property
    def reduction(self) -> int:
        """Length of one dot product: input channels of a group times kernel area (K of the layer as a GEMM)."""
        return self.params // self.out_channels

    @property
    def positions(self) -> int:
        """Output positions for one sample, over all calls (N of the layer as a GEMM, for batch 1)."""
        return self.macs // self.params

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types; `from_dict` restores an equal object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LayerSpec:
        """Builds the layer from what `to_dict` gave; JSON's lists become tuples again."""
        return restored(cls, data)


def quantizable_layers(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Yields `(name, module)` for every distinct 2-d convolution and linear layer, in registration order."""
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield name, module


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Runs its block with the model in evaluation mode and without gradients; restores every module's mode."""
    from torch import no_grad

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def run_sample(model: nn.Module, sample: Tensor | tuple[Any, ...]) -> Any:
    """Returns what the model gives for one input, in evaluation mode and without gradients.

    Raises:
        ModelError: The model fails on the sample.
    """
    try:
        with evaluating(model):
            return model(*(sample if isinstance(sample, tuple) else (sample,)))
    except Exception as error:  # the model is the user's code: whatever it raises, the mend is the same
        shape = "of several inputs" if isinstance(sample, tuple) else f"of shape {tuple(sample.shape)}"
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{type(model).__name__} fails on a sample {shape}: {reason}; give data of the shape it expects"
        ) from error


def trace(model: nn.Module, sample: Tensor | tuple[Any, ...]) -> list[LayerSpec]:
    """Lists the layers of `model` in the order of their first call.

    Args:
        model: Any module; it is run once, in evaluation mode and without gradients.
        sample: One input with a batch dimension of 1, such as `(1, C, H, W)` for an image and `(1, T)` for tokens, or a
            tuple of positional inputs.

    Returns:
        One spec for each `nn.Conv2d` (and subclass) and `nn.Linear` that was called. A module called several times is
        one layer whose MACs add up.

    Raises:
        ModelError: The model fails on the sample, or calls no quantizable layer.
    """
    specs: dict[str, LayerSpec] = {}
    names = {module: name for name, module in quantizable_layers(model)}

    def record(module: nn.Conv2d | nn.Linear, inputs: tuple[Any, ...], output: Tensor) -> None:
        name = names[module]
        spec = _spec(name, module, inputs[0], output)
        if (seen := specs.get(name)) is not None:
            spec = LayerSpec(**{**seen.__dict__, "macs": seen.macs + spec.macs})
        specs[name] = spec

    handles = [module.register_forward_hook(record) for module in names]
    try:
        run_sample(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    if not specs:
        raise ModelError(
            f"{type(model).__name__} calls no layer that can be quantized; a model needs at least one Conv2d or Linear"
        )
    return list(specs.values())


def _spec(name: str, module: nn.Conv2d | nn.Linear, x: Tensor, y: Tensor) -> LayerSpec:
    from torch import nn

    biases = 0 if module.bias is None else module.bias.numel()
    params = module.weight.numel()
    if isinstance(module, nn.Linear):
        rows = math.prod(x.shape[1:-1])
        return LayerSpec(
            name, "linear", module.in_features, module.out_features, (1, 1), (1, 1), (0, 0), (1, 1), 1,
            (rows, 1), (rows, 1), rows * params, params, biases,
        )  # fmt: skip
    kernel, dilation, stride = _pair(module.kernel_size), _pair(module.dilation), _pair(module.stride)
    in_size, out_size = _pair(x.shape[-2:]), _pair(y.shape[-2:])
    return LayerSpec(
        name, _kind(module), module.in_channels, module.out_channels, kernel, stride, _padding(module), dilation,
        module.groups, in_size, out_size, out_size[0] * out_size[1] * params, params, biases,
    )  # fmt: skip


def _kind(module: nn.Conv2d) -> LayerKind:
    if module.groups == 1:
        return "conv"
    return "depthwise" if module.groups == module.in_channels else "grouped"


def _padding(module: nn.Conv2d) -> Pair:
    if module.padding == "valid":
        return (0, 0)
    if module.padding == "same":  # PyTorch pads d·(k − 1) zeros in all; the side that may get one more is not kept
        height, width = (d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
        return height, width
    assert isinstance(module.padding, tuple)
    return _pair(module.padding)


def _pair(values: tuple[int, ...] | Size) -> Pair:
    height, width = values
    return int(height), int(width)
