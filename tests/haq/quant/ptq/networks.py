"""Small networks for the tests of the passes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers import quantizable_layers
from haq.policy import BitPolicy, LayerBits
from haq.quant.calibration import calibrate
from haq.quant.folding import fold_batch_norm
from haq.quant.preparation import prepare
from haq.quant.schemes import get_scheme


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives batch norms statistics and channels of very different ranges."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(draw(module.running_mean, -0.2, 0.2))
                module.running_var.copy_(draw(module.running_var, 0.5, 2.0))
                module.weight.copy_(torch.exp2(draw(module.weight, -3, 2)))
                module.bias.copy_(draw(module.bias, -0.5, 0.5))
    return model.eval()


class Inverted(nn.Module):
    """Expansion, depthwise convolution and projection, with a shortcut, as in MobileNetV2."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), activation())
        self.expand = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), activation())
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), activation()
        )
        self.project = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.classifier = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def images(count: int = 64, seed: int = 1) -> Tensor:
    """Returns smooth noise, because rounding to the nearest level is optimal for independent inputs."""
    coarse = torch.randn(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return 2 * F.interpolate(coarse, (8, 8), mode="bilinear") + 0.5


def quantized_pair(bits: int = 3, scheme: str = "linear", clip: str = "mse") -> tuple[nn.Module, nn.Module, nn.Module]:
    """Returns a network, its folded copy, and the quantized folded copy with 8-bit activations."""
    torch.manual_seed(0)
    model = shaken(Inverted())
    folded = fold_batch_norm(model, images(1))
    policy = BitPolicy({name: LayerBits(bits, 8) for name, _ in quantizable_layers(folded)})
    calibration = calibrate(
        folded, [images()], [bits, 8], get_scheme(scheme).with_options(clip=clip), compensated=False
    )
    return model, folded, prepare(folded, policy, scheme, calibration)
