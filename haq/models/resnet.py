"""Residual networks for small images (He et al. 2015, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SmallResNet", "cifar_resnet", "digits_resnet", "resnet20", "resnet32", "resnet56"]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (option A), which subsamples and pads channels with zeros.

    Args:
        in_channels: Input channels.
        channels: Output channels.
        stride: Stride of the first convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → `(N, channels, H/stride, W/stride)`."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        added = self.conv2.out_channels - self.conv1.in_channels
        shortcut = F.pad(shortcut, (0, 0, 0, 0, added // 2, added - added // 2))
        return F.relu(y + shortcut)


class SmallResNet(nn.Module):
    """A 3×3 convolution, stages of basic blocks, global average pooling and a linear layer.

    Args:
        widths: Channels of each stage.
        blocks: Blocks of each stage.
        strides: Stride of each stage's first block.
        num_classes: Outputs.
        in_channels: Channels of the images.
        enlarge: Factor by which images are first enlarged, bilinearly.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        in_channels: int,
        enlarge: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        channels, self.stages, self.enlarge = widths[0], len(widths), enlarge
        for number, (width, count, stride) in enumerate(zip(widths, blocks, strides, strict=True), 1):
            stage = nn.Sequential()
            for index in range(count):
                stage.append(BasicBlock(channels, width, stride if index == 0 else 1))
                channels = width
            self.add_module(f"layer{number}", stage)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` → `(N, num_classes)`."""
        if self.enlarge > 1:
            x = F.interpolate(x, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        x = F.relu(self.bn1(self.conv1(x)))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def cifar_resnet(depth: int, num_classes: int = 10, in_channels: int = 3) -> SmallResNet:
    """Returns ResNet-20, -32, -56, …, with three stages of n blocks.

    Args:
        depth: 6n + 2.
        num_classes: Outputs.
        in_channels: Channels of the images.
    """
    count = (depth - 2) // 6
    return SmallResNet((16, 32, 64), (count,) * 3, (1, 2, 2), num_classes, in_channels)


resnet20, resnet32, resnet56 = (partial(cifar_resnet, depth) for depth in (20, 32, 56))


def digits_resnet(num_classes: int = 10, in_channels: int = 1) -> SmallResNet:
    """Returns the default network: it enlarges 8×8 digits to 16×16, and its two stages keep this size."""
    return SmallResNet((16, 32), (3, 6), (1, 1), num_classes, in_channels, enlarge=2)
