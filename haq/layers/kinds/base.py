"""What haq knows about one kind of layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from haq.layers.spec import LayerSpec
from haq.torch_internals import BatchNorm

__all__ = ["LayerKind"]


class LayerKind:
    """How layers of one kind are described, run and calibrated; add yours to `haq.registry.LAYERS`.

    A layer is a module with one `weight`, whose first dimension has a scale for each index: output channels, or rows of
    a table. A kind needs `types`, `describe` and `run`. If its layers are a product of matrices, it should also have
    `count` and `columns`: calibration then compensates for rounding errors.

    Attributes:
        types: PyTorch's classes of this kind, or yours; subclasses belong to it too.
        reads_values: Whether the input is numbers, which can be quantized, and not indices.
        channel_axis: Dimension of the output with its channels.
        gains_bias: Whether a layer without a bias may get one; in deployment, a batch norm's shift becomes one.
        folds_norm: Whether a batch norm after the layer can become part of its weight, and of a bias added last.
        fuse: Computes weight and bias with a batch norm in them.
    """

    types: ClassVar[tuple[type[nn.Module], ...]] = ()
    reads_values: ClassVar[bool] = True
    channel_axis: ClassVar[int] = -1
    gains_bias: ClassVar[bool] = False
    folds_norm: ClassVar[bool] = False
    fuse: ClassVar[Callable[..., tuple[nn.Parameter, nn.Parameter]]] = staticmethod(fuse_conv_bn_weights)

    def matches(self, module: nn.Module) -> bool:
        """Whether the module is a layer of this kind."""
        return isinstance(module, self.types)

    def describe(self, name: str, layer: Any, x: Tensor, y: Tensor) -> LayerSpec:
        """Describes one call for one sample.

        Args:
            name: Name of the layer.
            layer: The layer.
            x: Its input.
            y: Its output.
        """
        raise NotImplementedError

    def run(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **named: Any) -> Tensor:
        """Runs the layer with another weight and bias; never changes the layer, because threads may share it.

        Args:
            layer: The layer.
            x: Its input.
            weight: In place of its weight, of the same shape.
            bias: In place of its bias; `None` for none.
            *rest: Further arguments of the call.
            **named: Further arguments of the call, by name.
        """
        raise NotImplementedError

    # Layers that are a product of matrices

    def is_product(self, layer: nn.Module) -> bool:
        """Whether the layer is one product of its weight, as a matrix, and columns of its input."""
        return type(self).columns is not LayerKind.columns

    def count(self, layer: Any, x: Tensor) -> int:
        """Returns the number of columns of an input: positions at which the weight is applied."""
        raise NotImplementedError

    def columns(self, layer: Any, x: Tensor, chosen: Tensor) -> Tensor:
        """Returns columns that the weight, as a matrix `(M, K)`, is multiplied by.

        Args:
            layer: The layer.
            x: Its input.
            chosen: Numbers of the columns, `(n,)`; those of a sample follow each other.

        Returns:
            `(groups, K, n)`.
        """
        raise NotImplementedError

    def windows(self, layer: Any, x: Tensor) -> Tensor:
        """Returns all columns by the input's first dimension, `(N, groups, K, P)`."""
        every = self.columns(layer, x, torch.arange(self.count(layer, x)))
        return every.reshape(*every.shape[:2], len(x), -1).permute(2, 0, 1, 3)

    def results(self, layer: Any, y: Tensor) -> Tensor:
        """Returns an output, or its gradient, in the same form: `(N, groups, M / groups, P)`."""
        rows, groups = y.movedim(self.channel_axis, 1), self.groups(layer)
        return rows.reshape(len(y), groups, rows.shape[1] // groups, -1)

    def groups(self, layer: Any) -> int:
        """Returns the number of groups of channels that do not mix."""
        return int(getattr(layer, "groups", 1))

    # Channels of the output

    def channel_mean(self, y: Tensor) -> Tensor:
        """Returns the mean of each output channel, `(M,)`."""
        axis = self.channel_axis % y.dim()
        return y.mean([dim for dim in range(y.dim()) if dim != axis])

    def along_channels(self, values: Tensor, y: Tensor) -> Tensor:
        """Reshapes one value for each output channel, `(M,)`, so that it broadcasts over an output."""
        shape = [1] * y.dim()
        shape[self.channel_axis] = -1
        return values.reshape(shape)

    def fold_norm(self, layer: Any, norm: BatchNorm) -> None:
        """Makes the batch norm after a layer part of the layer's weight and bias, in place."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        layer.weight, layer.bias = self.fuse(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )

    # Subclasses with a forward pass of their own

    def examples(self, layer: Any, generator: torch.Generator) -> list[Tensor]:
        """Returns generated inputs; a forward pass of a user's own is tried on each until one works."""
        return []

    def usual(self, layer: Any) -> list[Any]:
        """Returns the arguments after the bias that PyTorch's own forward pass gives to its product."""
        return []
