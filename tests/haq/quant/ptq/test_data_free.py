import pytest
import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers import quantizable_layers
from haq.quant.ptq.data_free import calibrate_data_free, data_free_inputs
from haq.quant.ptq.statistics import input_statistics
from haq.quant.quantizers.uniform import UniformQuantizer
from tests.haq.quant.ptq.networks import Inverted, images, shaken


def test_ranges_are_those_of_the_batch_norms() -> None:
    torch.manual_seed(0)
    model = shaken(Inverted())
    ranges = data_free_inputs(model, images())
    norm = model.get_submodule("stem.1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert ranges["expand.0"] == (0.0, pytest.approx(float((norm.bias + 6 * norm.weight).detach().max())))
    assert ranges["stem.0"][0] < float(images().mean()) < ranges["stem.0"][1]
    assert set(ranges) == {name for name, _ in quantizable_layers(model)}


def test_relu6_ends_the_range() -> None:
    torch.manual_seed(0)
    assert data_free_inputs(shaken(Inverted(nn.ReLU6)), images())["depthwise.0"] == (0.0, 6.0)


def test_behind_a_sum_means_add() -> None:
    torch.manual_seed(0)
    model = shaken(Inverted())
    statistics = input_statistics(model, images(1))
    shortcut, _ = statistics["expand.0"].moments()
    norm = model.get_submodule("project.1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert torch.allclose(statistics["classifier"].mean, shortcut + norm.bias, atol=1e-6)
    assert "stem.0" not in statistics


def test_quantizers_are_set_up_for_every_layer() -> None:
    torch.manual_seed(0)
    model = shaken(Inverted())
    calibration = calibrate_data_free(model, images(), [4, 8], "linear")
    quantizer = calibration["expand.0"].inputs[8]
    assert isinstance(quantizer, UniformQuantizer)
    assert not quantizer.signed
    _, high = data_free_inputs(model, images())["expand.0"]
    assert 0.3 * high < float(quantizer.scale.detach()) * 255 <= high * 1.001


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(x) ** 2)
        return y


def test_an_unknown_range_is_an_error() -> None:
    with pytest.raises(ModelError, match="no batch norm gives the input range of layer 'two'"):
        data_free_inputs(Square().eval(), images())
