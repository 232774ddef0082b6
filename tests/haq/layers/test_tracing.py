import pytest
import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers import LayerSpec, trace


def test_every_form_of_convolution() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=4),
        nn.Conv2d(8, 16, (1, 3), groups=8, padding_mode="circular", padding=(0, 1), bias=False),
        nn.Flatten(),
        nn.Linear(16 * 16, 10),
    )
    strided, grouped, depthwise, linear = trace(model, torch.zeros(1, 4, 8, 8))
    assert (strided.kind, strided.in_size, strided.out_size, strided.stride) == ("conv", (8, 8), (4, 4), (2, 2))
    assert strided.macs == 8 * 4 * 9 * 16
    assert (strided.params, strided.biases, strided.reduction, strided.positions) == (8 * 4 * 9, 8, 36, 16)
    assert (grouped.kind, grouped.padding, grouped.reduction) == ("grouped", (2, 2), 18)
    assert (depthwise.kind, depthwise.macs, depthwise.biases) == ("depthwise", 16 * 3 * 16, 0)
    assert (linear.kind, linear.macs, linear.positions) == ("linear", 2560, 1)


def test_linear_layer_on_tokens() -> None:
    (layer,) = trace(nn.Linear(6, 4), torch.zeros(1, 7, 6))
    assert (layer.positions, layer.macs, layer.in_size) == (7, 7 * 24, (7, 1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(2, 2, 3, padding=1)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shared(self.shared(x)[:, :, ::2])
        return y


def test_a_module_called_twice_is_one_layer_whose_macs_add_up() -> None:
    (layer,) = trace(Twice(), torch.zeros(1, 2, 4, 4))
    assert layer.macs == 36 * (16 + 8)
    assert LayerSpec.from_dict(layer.to_dict()) == layer


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1).eval(), nn.Dropout()).train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    trace(model, torch.ones(1, 1, 2, 2))
    assert [module.training for module in model.modules()] == before
    assert not model[0]._forward_hooks


def test_errors() -> None:
    with pytest.raises(ModelError, match="calls no layer that can be quantized"):
        trace(nn.ReLU(), torch.zeros(1, 2))
    with pytest.raises(ModelError, match=r"Linear fails on a sample of shape \(1, 2\)"):
        trace(nn.Linear(3, 3), torch.zeros(1, 2))
