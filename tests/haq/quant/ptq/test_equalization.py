import pytest
import torch
from torch import nn

from haq.models import get_model
from haq.quant.ptq.equalization import equalize, equalize_pair, find_pairs, input_ranges, output_ranges
from tests.haq.quant.ptq.networks import Inverted, images, shaken


def test_scales_are_those_of_the_paper() -> None:
    """Nagel et al. 2019, arXiv:1906.04721, eq. 11, by hand; the third channel is dead."""
    first, second = nn.Linear(2, 3), nn.Linear(3, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[8.0, -2.0], [0.5, 0.25], [0.0, 0.0]]))
        first.bias.copy_(torch.tensor([4.0, 1.0, 3.0]))
        second.weight.copy_(torch.tensor([[2.0, -8.0, 1.0], [1.0, 4.0, 1.0]]))
    s = equalize_pair(first, second)
    assert s.tolist() == [2.0, 0.25, 1.0]
    assert output_ranges(first).tolist() == [4.0, 2.0, 0.0], "√(8·2) and √(½·8)"
    assert input_ranges(second).tolist() == [4.0, 2.0, 1.0]
    assert first.bias.tolist() == [2.0, 4.0, 3.0]


@pytest.mark.parametrize(("groups", "channels"), [(1, 6), (2, 6), (6, 6)])
def test_ranges_of_grouped_inputs(groups: int, channels: int) -> None:
    layer = nn.Conv2d(channels, 12, 3, groups=groups)
    per_group, outputs = channels // groups, 12 // groups
    for channel in range(channels):
        group = channel // per_group
        read = layer.weight[group * outputs : (group + 1) * outputs, channel % per_group]
        assert input_ranges(layer)[channel] == read.abs().max()


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", ["resnet20", "inverted"])
def test_the_function_stays_and_ranges_are_equal(name: str, fold: bool) -> None:
    torch.manual_seed(0)
    model = shaken(get_model("resnet20") if name == "resnet20" else Inverted())
    x = images(4)
    equal = equalize(model, x, fold)
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(equal(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert any(isinstance(module, nn.BatchNorm2d) for module in equal.modules()) != fold
    if fold:
        pairs = find_pairs(equal)
        assert len(pairs) == (9 if name == "resnet20" else 2), "those of the residual blocks alone"
        for pair in pairs:
            first, second = (equal.get_submodule(layer) for layer in (pair.first, pair.second))
            assert torch.allclose(output_ranges(first), input_ranges(second), rtol=1e-3)  # type: ignore[arg-type]


def test_relu6_goes_only_where_it_does_nothing() -> None:
    torch.manual_seed(0)
    model = shaken(Inverted(nn.ReLU6))
    calm = equalize(model, images(4) * 0.01)
    assert isinstance(calm.get_submodule("expand.2"), nn.ReLU)
    nn.init.constant_(model.get_submodule("expand.1").bias, 7.0)  # type: ignore[arg-type]
    loud = equalize(model, images(4))
    assert isinstance(loud.get_submodule("expand.2"), nn.ReLU6)
    with torch.no_grad():
        expected = model(images(4))
        assert torch.allclose(loud(images(4)), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
