"""MobileNets, the networks in HAQ's paper."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["MobileNetV1", "MobileNetV2"]


def _conv_bn(cin: int, cout: int, kernel: int, stride: int, groups: int, activation: type[nn.Module]) -> nn.Sequential:
    convolution = nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(cout), activation())


class MobileNetV1(nn.Module):
    """Depthwise-separable convolutions (Howard et al. 2017, arXiv:1704.04861, table 1); input 224×224."""

    _PLAN = (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
        (1024, 2), (1024, 1),
    )  # fmt: skip  # (channels, stride) of each separable convolution

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        layers, channels = [_conv_bn(in_channels, 32, 3, 2, 1, nn.ReLU)], 32
        for width, stride in self._PLAN:
            layers.append(_conv_bn(channels, channels, 3, stride, channels, nn.ReLU))
            layers.append(_conv_bn(channels, width, 1, 1, 1, nn.ReLU))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` → `(N, num_classes)`."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection, with a shortcut if the shapes allow it.

    Args:
        cin: Input channels.
        cout: Output channels.
        stride: Stride of the depthwise convolution.
        expansion: Channels of the depthwise convolution, as a multiple of `cin`.
    """

    def __init__(self, cin: int, cout: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = cin * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_bn(cin, hidden, 1, 1, 1, nn.ReLU6)]
        layers.append(_conv_bn(hidden, hidden, 3, stride, hidden, nn.ReLU6))
        layers += [nn.Conv2d(hidden, cout, 1, bias=False), nn.BatchNorm2d(cout)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """`(N, cin, H, W)` → `(N, cout, H/stride, W/stride)`."""
        y: Tensor = self.conv(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """Inverted residuals (Sandler et al. 2018, arXiv:1801.04381, table 2), with torchvision's state-dict keys."""

    # (expansion, channels, blocks, stride of the first block)
    _PLAN = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_bn(in_channels, 32, 3, 2, 1, nn.ReLU6)]
        channels = 32
        for expansion, width, count, stride in self._PLAN:
            for index in range(count):
                layers.append(InvertedResidual(channels, width, stride if index == 0 else 1, expansion))
                channels = width
        layers.append(_conv_bn(channels, 1280, 1, 1, 1, nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` → `(N, num_classes)`."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits
