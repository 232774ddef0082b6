import pytest
import torch
from torch import nn

from haq.errors import DataError, ModelError
from haq.layers import quantizable_layers
from haq.quant.ptq.adaround import SoftRounding, adaround
from haq.quant.ptq.blocks import chain_of_blocks
from haq.quant.quantizers.uniform import UniformQuantizer, uniform
from tests.haq.quant.ptq.networks import images, quantized_pair


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module, nn.Module]:
    _, folded, quantized = quantized_pair(clip="minmax")  # scales that are not yet fitted to the layers' outputs
    return folded, quantized, adaround(quantized, folded, [images(32), images(32, 2)], steps=60, seed=3)


def test_every_code_is_rounded_down_or_up(networks: tuple[nn.Module, nn.Module, nn.Module]) -> None:
    folded, quantized, tuned = networks
    moved = 0
    for name, layer in quantizable_layers(tuned):
        quantizer = layer.weight_quantizer
        assert isinstance(quantizer, UniformQuantizer)
        steps = folded.get_submodule(name).weight.detach().flatten(1) / quantizer.scale.detach()[:, None]  # type: ignore[operator, union-attr]
        codes = quantizer.codes(layer.weight).flatten(1)
        assert torch.all(codes >= steps.floor().clamp(-4, 3))
        assert torch.all(codes <= (steps + 1e-4).ceil().clamp(-4, 3))
        before = quantized.get_submodule(name)
        moved += int((codes != before.weight_quantizer.codes(before.weight).flatten(1)).sum())  # type: ignore[operator, union-attr]
    assert moved > 0, "not all are rounded to the nearest level"


def test_weights_lie_on_the_grid(networks: tuple[nn.Module, nn.Module, nn.Module]) -> None:
    for _, layer in quantizable_layers(networks[2]):
        quantizer = layer.weight_quantizer
        assert torch.allclose(quantizer(layer.weight), layer.weight, rtol=1e-6, atol=0)
        assert torch.equal(quantizer.codes(layer.weight), quantizer.codes(quantizer(layer.weight)))


def test_outputs_come_closer(networks: tuple[nn.Module, nn.Module, nn.Module]) -> None:
    x = images(64, 9)  # not the images used for tuning
    folded, quantized, tuned = (chain_of_blocks(network, "the test", images(2)) for network in networks)
    with torch.no_grad():
        for block in range(2):
            given = x if block == 0 else folded[0](x)
            before, after = ((net[block](given) - folded[block](given)).square().mean() for net in (quantized, tuned))
            assert after < 0.9 * before, f"block {block}"


def test_the_same_seed_gives_the_same_rounding() -> None:
    _, folded, quantized = quantized_pair()
    runs = [adaround(quantized, folded, [images(16)], steps=8, seed=seed).state_dict() for seed in (0, 0, 1)]
    same = [all(torch.equal(runs[0][key], run[key]) for key in runs[0] if "extra" not in key) for run in runs[1:]]
    assert same == [True, False]


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_starts_at_the_weight(bits: int, symmetric: bool) -> None:
    weight = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    quantizer = uniform(weight, bits, symmetric=symmetric, clip="minmax", signed=True)
    rounding = SoftRounding(quantizer, weight)
    inside = (weight.abs() < 0.9 * weight.abs().amax(1, keepdim=True)) if bits > 1 else weight.abs() < 0.5
    low, high = (quantizer(weight).amin(1, keepdim=True), quantizer(weight).amax(1, keepdim=True))
    inside &= (weight > low) & (weight < high)
    assert torch.allclose(rounding(weight)[inside], weight[inside], atol=1e-3)
    assert torch.allclose(quantizer(rounding.decided()), rounding.decided(), rtol=1e-5, atol=1e-6)


def test_blocks_make_up_the_network() -> None:
    _, folded, _ = quantized_pair()
    blocks = chain_of_blocks(folded, "the test", images(2))
    held = [[name for name, _ in quantizable_layers(block)] for block in blocks]
    assert held == [["stem.0"], ["expand.0", "depthwise.0", "project.0"], ["classifier"]]
    x = images(4)
    with torch.no_grad():
        y = x
        for block in blocks:
            y = block(y)
        assert torch.equal(y, folded(x))


def test_errors_name_the_layer() -> None:
    _, folded, quantized = quantized_pair(scheme="kmeans")
    with pytest.raises(ModelError, match="layer 'stem.0' has a .* AdaRound needs a uniform grid"):
        adaround(quantized, folded, [images()])
    _, folded, quantized = quantized_pair()
    with pytest.raises(DataError, match="no batches"):
        adaround(quantized, folded, [])
