from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from haq.errors import ConfigError, ModelError
from haq.layers import quantizable_layers
from haq.models import get_model
from haq.models.resnet import SmallResNet
from haq.policy import BitPolicy, LayerBits
from haq.quant.calibration import calibrate
from haq.quant.folding import fold_batch_norm
from haq.quant.modules import Quantized
from haq.quant.preparation import load_quantized, load_state, prepare, save_quantized
from haq.quant.quantizers.uniform import UniformQuantizer
from haq.quant.schemes import get_scheme, list_schemes

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = get_model("resnet20")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in quantizable_layers(model)]


def test_folding_keeps_the_output_and_leaves_no_batch_norm(network: nn.Module, images: Tensor) -> None:
    folded = fold_batch_norm(network, IMAGE)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        assert torch.allclose(folded(images), network(images), rtol=1e-3, atol=1e-4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules()), "the original is untouched"


class OutputReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        nn.init.constant_(self.norm.running_mean, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = y + self.norm(y)
        return z


def test_a_layer_whose_output_others_read_is_not_folded() -> None:
    model = OutputReadTwice().eval()
    folded = fold_batch_norm(model, IMAGE + 1)
    with torch.no_grad():
        assert torch.equal(folded(IMAGE + 1), model(IMAGE + 1))


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width_has_at_most_its_number_of_levels(network: nn.Module, images: Tensor, bits: int) -> None:
    folded = fold_batch_norm(network, IMAGE)
    policy = BitPolicy.uniform(names(folded), bits)
    quantized = prepare(folded, policy, calibration=calibrate(folded, [images], [bits]))
    layer = quantized.get_submodule("layer1.0.conv1")
    assert isinstance(layer, Quantized)
    weights = layer.weight_quantizer(layer.weight)
    assert max(len(channel.unique()) for channel in weights) <= 2**bits
    assert isinstance(layer.weight_quantizer, UniformQuantizer)
    assert torch.allclose(layer.weight_quantizer.encode(layer.weight).dequantize(), weights, rtol=1e-6)
    assert torch.equal(weights, layer.weight), "the weight is on its grid"
    assert isinstance(layer.input_quantizer, UniformQuantizer)
    assert not layer.input_quantizer.signed, "it reads the output of a ReLU"
    assert quantized.get_submodule("conv1").input_quantizer.signed, "images have negative values"  # type: ignore[union-attr]


def test_more_bits_come_closer_to_the_float_network(network: nn.Module, images: Tensor) -> None:
    folded = fold_batch_norm(network, IMAGE)
    calibration = calibrate(folded, [images], range(2, 9))
    with torch.no_grad():
        expected = folded(images)
        networks = [prepare(folded, BitPolicy.uniform(names(folded), b), calibration=calibration) for b in (2, 4, 6, 8)]
        errors = [float((quantized(images) - expected).square().mean()) for quantized in networks]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * float(expected.square().mean())


def test_none_leaves_a_layer_in_floating_point(network: nn.Module, images: Tensor) -> None:
    quantized = prepare(network, BitPolicy.uniform(names(network), None))
    with torch.no_grad():
        assert torch.equal(quantized(images), network(images))


def test_a_module_under_two_names_is_quantized_under_both() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared})
    quantized = prepare(model, BitPolicy({"a": LayerBits(4, 4)}))
    assert quantized["a"] is quantized["b"]  # type: ignore[index]
    assert isinstance(quantized["a"], Quantized)  # type: ignore[index]


def test_unknown_layer(network: nn.Module) -> None:
    with pytest.raises(ConfigError, match="'conv2' is not in the model .did you mean 'conv1'"):
        prepare(network, BitPolicy({"conv2": LayerBits(8, 8)}))


def test_a_saved_network_gives_the_same_output_bit_for_bit(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    folded = fold_batch_norm(network, IMAGE)
    policy = BitPolicy.uniform(names(folded), 4, {"conv1": LayerBits(8, None)})
    quantized = prepare(folded, policy, calibration=calibrate(folded, [images], [4, 8]))
    save_quantized(tmp_path / "model.pt", quantized, policy, IMAGE, folded=True)
    torch.load(tmp_path / "model.pt", weights_only=True)
    restored = load_quantized(tmp_path / "model.pt", get_model("resnet20"))
    with torch.no_grad():
        assert torch.equal(restored(images), quantized(images))
    with pytest.raises(ModelError, match="cannot load"):
        load_quantized(tmp_path / "model.pt", get_model("mobilenet-v1"))
    (tmp_path / "model.pt").write_bytes(b"broken")
    with pytest.raises(ModelError, match="cannot load"):
        load_quantized(tmp_path / "model.pt", get_model("resnet20"))


@pytest.mark.parametrize("scheme", list_schemes())
def test_every_scheme_prepares_saves_and_loads(scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SmallResNet((4,), (1,), (1,), 3, 1).eval()
    x = torch.randn(8, 1, 6, 6)
    chosen = get_scheme(scheme)
    width = chosen.widths[len(chosen.widths) // 2]
    both = {name: LayerBits(width, chosen.activation_width(width)) for name in names(model)}
    policy = BitPolicy(both, scheme)
    widths = {width, chosen.activation_width(width) or 8}
    quantized = prepare(model, policy, calibration=calibrate(model, [x], widths, scheme)).eval()
    save_quantized(tmp_path / "model.pt", quantized, policy, x[:1])
    restored = load_quantized(tmp_path / "model.pt", SmallResNet((4,), (1,), (1,), 3, 1))
    with torch.no_grad():
        assert torch.equal(restored(x), quantized(x))


def one_sided() -> tuple[nn.Module, Tensor]:
    """A network whose weights need zero points at low widths, and whose convolutions have no biases."""
    torch.manual_seed(0)
    model, x = SmallResNet((4,), (1,), (1,), 3, 1).eval(), torch.randn(32, 1, 6, 6) + 1
    with torch.no_grad():
        for _, layer in quantizable_layers(model):
            layer.weight.copy_(layer.weight.abs() + 0.5 * layer.weight.std())
    return model, x


def zero_points(model: nn.Module) -> set[str]:
    return {
        key for key, value in model.state_dict().items() if "weight_quantizer.zero_point" in key and value is not None
    }


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_chosen_zero_points_and_added_biases_are_saved(bits: int, tmp_path: Path) -> None:
    model, x = one_sided()
    policy = BitPolicy.uniform(names(model), bits)
    quantized = prepare(model, policy, calibration=calibrate(model, [x], [bits])).eval()
    assert bits > 2 or zero_points(quantized)
    assert quantized.get_submodule("conv1").bias is not None
    save_quantized(tmp_path / "model.pt", quantized, policy, x[:1])
    restored = load_quantized(tmp_path / "model.pt", one_sided()[0])
    assert zero_points(restored) == zero_points(quantized)
    with torch.no_grad():
        assert torch.equal(restored(x), quantized(x))


@pytest.mark.parametrize("scheme", ["linear", "asymmetric", "lsq", "kmeans", "bwn"])
def test_files_from_before_compensated_rounding_are_read(scheme: str, tmp_path: Path) -> None:
    """Their weights lie between levels, their grids are symmetric, their convolutions have no biases."""
    model, x = one_sided()
    bits = get_scheme(scheme).widths[0]
    policy = BitPolicy({name: LayerBits(bits, 8) for name in names(model)}, scheme)
    old = prepare(model, policy, calibration=calibrate(model, [x], [bits, 8], scheme, compensated=False)).eval()
    assert old.get_submodule("conv1").bias is None
    save_quantized(tmp_path / "model.pt", old, policy, x[:1])
    restored = load_quantized(tmp_path / "model.pt", one_sided()[0])
    assert restored.get_submodule("conv1").bias is None
    with torch.no_grad():
        assert torch.equal(restored(x), old(x))


def test_a_state_brings_its_own_grids_and_biases() -> None:
    """Like the state of a finalist, whose weights were rounded again after calibration."""
    model, x = one_sided()
    policy = BitPolicy.uniform(names(model), 2)
    shifted = prepare(model, policy, calibration=calibrate(model, [x], [2])).eval()
    plain = prepare(model, policy, calibration=calibrate(model, [x], [2], compensated=False)).eval()
    assert zero_points(shifted)
    assert not zero_points(plain)
    with torch.no_grad():
        wanted = shifted(x)
        load_state(plain, shifted.state_dict())
        assert torch.equal(plain(x), wanted)
        assert zero_points(plain) == zero_points(shifted)


def test_a_width_that_was_not_calibrated(network: nn.Module, images: Tensor) -> None:
    calibration = calibrate(network, [images], [4])
    with pytest.raises(ConfigError, match="weights of 3 bits are not calibrated"):
        prepare(network, BitPolicy.uniform(names(network), 3), calibration=calibration)
