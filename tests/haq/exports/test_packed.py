"""Packed files: bits, exact outputs, size, and what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from haq.data import get_data
from haq.errors import ConfigError, ModelError
from haq.exports import export_run
from haq.exports.folded import fold_norms
from haq.exports.formats import run_policy
from haq.exports.packed import load_packed, to_packed
from haq.exports.packing import coded_layers, pack, slope_and_shift, unpack
from haq.exports.run_network import open_run
from haq.hwmodels.accelerators.footprint import size_bytes
from haq.io.user_code import call_named
from haq.layers import quantizable_layers, trace
from haq.models import get_model
from haq.models.registry import load_weights
from haq.policy import BitPolicy, LayerBits
from haq.quant import calibrate, list_schemes, prepare
from haq.quant.folding import fold_batch_norm
from haq.quant.modules import Quantized
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.quantizers.uniform import UniformQuantizer, uniform
from haq.runs import RunFolder
from tests.shared_data import RESNET20, needs_shared_data

from .conftest import IMAGES, Net, Prepared

REFUSED = {"lqnets", "abcnet", "qil", "bnn", "xnor"}  # activations without a uniform grid
FLOAT = {"fp16", "bf16"}


@given(st.integers(1, 16).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1), min_size=1))))
def test_codes_come_back_from_their_bits(case: tuple[int, list[int]]) -> None:
    bits, codes = case
    stream = pack(np.array(codes), bits)
    assert len(stream) == -(-len(codes) * bits // 8)
    assert sum(code << bits * place for place, code in enumerate(codes)) == int.from_bytes(stream, "little")
    assert unpack(np.frombuffer(stream, np.uint8), bits, len(codes)).tolist() == codes


def _save(path: Path, network: nn.Module, policy: BitPolicy, sample: torch.Tensor, folded: bool = False) -> None:
    path.write_bytes(to_packed(network, policy, sample, folded))


def _same(network: nn.Module, restored: nn.Module, images: torch.Tensor = IMAGES) -> bool:
    with torch.no_grad():
        return torch.equal(network(images), restored(images))


@pytest.mark.parametrize("scheme", sorted({*list_schemes()} - REFUSED - FLOAT))
def test_a_network_computes_the_same_to_the_last_bit(
    prepared: Callable[..., Prepared], tmp_path: Path, scheme: str
) -> None:
    from haq.quant import get_scheme

    widths = get_scheme(scheme).widths
    for bits in (bits for bits in (1, 2, 3, 5, 8, 16) if bits in widths):
        network, policy = prepared(scheme, bits, get_scheme(scheme).activation_width(bits))
        _save(tmp_path / "net", network, policy, IMAGES[:1])
        assert _same(network, load_packed(tmp_path / "net", Net())), f"{scheme} at {bits} bits"


@pytest.mark.parametrize("granularity", ["tensor", "channel", "row", "column", "group:4"])
def test_every_granularity_is_kept(prepared: Callable[..., Prepared], tmp_path: Path, granularity: str) -> None:
    network, policy = prepared("asymmetric", 3, 5, granularity=granularity)
    _save(tmp_path / "net", network, policy, IMAGES[:1])
    assert _same(network, load_packed(tmp_path / "net", Net()))


def test_symmetric_and_asymmetric_layers_side_by_side(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    for bits in range(1, 9):
        network, policy = prepared("linear", bits, 4)
        stored = _asymmetric(network, "conv", "fc")
        _save(tmp_path / "net", network, policy, IMAGES[:1])
        assert _same(network, load_packed(tmp_path / "net", Net())), bits
        with safe_open(tmp_path / "net", "np") as file:
            sizes = {name: file.get_tensor(name).nbytes for name in ("codes", "zero_points", "scales")}
        depthwise = network.get_submodule("depthwise")
        stored.append(depthwise.weight_quantizer.encode(depthwise.weight))  # type: ignore[operator,union-attr]
        assert sum(sizes.values()) == sum(part.size_bytes for part in stored), "what is stored is what is counted"


def test_zero_points_beyond_the_codes_that_occur_are_kept(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    network, policy = prepared("asymmetric", 4, 8, granularity="tensor")
    layer = network.get_submodule("conv")
    zero = torch.tensor([15], dtype=torch.int32)  # and unsigned codes of 0 to 7, which would fit a signed grid
    layer.weight_quantizer = UniformQuantizer(4, torch.ones(1), False, zero)
    layer.weight = nn.Parameter(torch.randint(-15, -7, layer.weight.shape).float())  # type: ignore[operator,union-attr]
    _save(tmp_path / "net", network, policy, IMAGES[:1])
    assert _same(network, load_packed(tmp_path / "net", Net()))


def test_files_with_zero_points_of_32_bits_are_read(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    network, policy = prepared("linear", 3, 4)
    _asymmetric(network, "conv")
    stored = [layer.weight_quantizer.encode(layer.weight) for _, layer in coded_layers(network)]  # type: ignore[operator]
    _save(tmp_path / "net", network, policy, IMAGES[:1])
    with safe_open(tmp_path / "net", "pt") as file:
        about = json.loads(file.metadata()["haq"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert about["version"] == 2
    tensors["zero_points"] = torch.cat([part.zero_point for part in stored if part.zero_point is not None])
    save_file(tensors, tmp_path / "old", {"haq": json.dumps(about | {"version": 1})})
    assert _same(network, load_packed(tmp_path / "old", Net()))
    save_file(tensors, tmp_path / "new", {"haq": json.dumps(about | {"version": 3})})
    with pytest.raises(ModelError, match="has version 3 of the format; this haq reads .1, 2."):
        load_packed(tmp_path / "new", Net())


def _asymmetric(network: nn.Module, *names: str) -> list[QuantizedTensor]:
    """Gives layers asymmetric weights and returns their codes."""
    found = []
    for name in names:
        layer = network.get_submodule(name)
        assert isinstance(layer, Quantized)
        layer.weight = nn.Parameter(layer.weight + layer.weight.std())
        bits = layer.weight_quantizer.bits
        layer.weight_quantizer = uniform(layer.weight, bits, symmetric=False, signed=True)  # type: ignore[arg-type]
        found.append(layer.weight_quantizer.encode(layer.weight))
    return found


def test_biases_that_rounding_added_are_kept_and_models_have_them_or_not(
    prepared: Callable[..., Prepared], tmp_path: Path
) -> None:
    network, policy = prepared("linear", 2, 4)
    layer = network.get_submodule("depthwise")
    assert layer.bias is not None, "its mean error is taken off"
    _save(tmp_path / "net", network, policy, IMAGES[:1])
    assert _same(network, load_packed(tmp_path / "net", Net()))
    layer.bias = None
    _save(tmp_path / "net", network, policy, IMAGES[:1])
    assert load_packed(tmp_path / "net", Net()).get_submodule("depthwise").bias is None
    assert _same(network, load_packed(tmp_path / "net", Net()))


def test_folded_batch_norms_and_float_layers_are_kept(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    net = fold_batch_norm(Net().eval(), IMAGES[:1])
    policy = BitPolicy({"depthwise": LayerBits(3, None), "fc": LayerBits(None, 4)})
    network = prepare(net, policy, calibration=calibrate(net, [IMAGES], [3, 4])).eval()
    _save(tmp_path / "net", network, policy, IMAGES[:1], folded=True)
    assert _same(network, load_packed(tmp_path / "net", Net()))


@pytest.mark.parametrize(("scheme", "bits"), [("linear", 4), ("asymmetric", 5), ("lsq", 3), ("bwn", 1), ("dorefa", 3)])
def test_folding_keeps_codes_and_function(
    prepared: Callable[..., Prepared], tmp_path: Path, scheme: str, bits: int
) -> None:
    network, policy = prepared(scheme, bits, 8)
    network.get_submodule("bn").weight.data[0] = -0.5  # type: ignore[operator,union-attr]
    _save(tmp_path / "exact", network, policy, IMAGES[:1])
    _save(tmp_path / "folded", fold_norms(network, IMAGES[:1]), policy, IMAGES[:1], folded=True)
    with safe_open(tmp_path / "exact", "np") as exact, safe_open(tmp_path / "folded", "np") as folded:
        assert scheme == "dorefa" or np.array_equal(exact.get_tensor("codes"), folded.get_tensor("codes"))
        assert "norms" not in folded.keys()  # noqa: SIM118
    restored = load_packed(tmp_path / "folded", Net())
    assert isinstance(restored.get_submodule("bn"), nn.Identity)
    with torch.no_grad():
        assert torch.allclose(restored(IMAGES), network(IMAGES), atol=1e-5)


@pytest.mark.parametrize(("scheme", "options"), [("kmeans", {}), ("linear", {"granularity": "group:4"})])
def test_what_has_no_scale_for_a_channel_is_not_folded(
    prepared: Callable[..., Prepared], scheme: str, options: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="batch norm after layer 'conv' cannot be folded.*export --format packed"):
        fold_norms(prepared(scheme, 4, 8, **options)[0], IMAGES[:1])


def test_a_layer_that_others_read_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            z: torch.Tensor = y + self.bn(y)
            return z

    net = Shared().eval()
    nn.init.constant_(net.bn.weight, 3.0)
    network = prepare(net, BitPolicy({"conv": LayerBits(4, None)})).eval()
    with pytest.raises(ConfigError, match="batch norms cannot be folded: a layer's output is read by more than"):
        fold_norms(network, IMAGES[:1])


def test_a_batch_norm_is_two_numbers_a_channel() -> None:
    torch.manual_seed(0)
    for affine in (True, False):
        norm, plain = nn.BatchNorm2d(40, affine=affine).eval(), nn.BatchNorm2d(40, eps=0.0).eval()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.01, 3)
        for values in norm.parameters():
            nn.init.normal_(values)
        plain.weight, plain.bias = map(nn.Parameter, slope_and_shift(norm))
        assert _same(norm, plain, torch.randn(4, 40, 3, 3))


@pytest.mark.parametrize("scheme", sorted(REFUSED | FLOAT))
def test_what_has_no_codes_is_refused_by_name(prepared: Callable[..., Prepared], tmp_path: Path, scheme: str) -> None:
    bits = 16 if scheme in FLOAT else 1 if scheme in ("bnn", "xnor") else 2
    network, policy = prepared(scheme, bits, bits)
    with pytest.raises(ConfigError, match=f"scheme '{scheme}' .* layer 'conv'"):
        _save(tmp_path / "net", network, policy, IMAGES[:1])
    assert not list(tmp_path.iterdir())


def test_the_file_of_a_run_says_what_it_holds(searched: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    assert export_run(searched, "packed", out) == out
    policy = run_policy(searched)
    with safe_open(out, framework="np") as file:
        about = json.loads(file.metadata()["haq"])
        codes = file.get_tensor("codes")
    assert {name: LayerBits(*entry[:2]) for name, entry in about["layers"].items()} == dict(policy)
    expected = sum(-(-layer.params * (policy[layer.name].w_bits or 0) // 8) for layer in searched.read_layers())
    assert codes.nbytes == expected

    opened = open_run(searched, policy)
    model = call_named(searched.read_config().model, "model", ModelError)
    images = get_data("digits", 1000, 0).test.batch(range(64))[0]
    assert _same(opened.network, load_packed(out, model), images)


def test_the_documented_layout_gives_the_weights(searched: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    export_run(searched, "packed", out)
    with safe_open(out, framework="np") as file:
        layers = json.loads(file.metadata()["haq"])["layers"]
        streams = {name: file.get_tensor(name) for name in ("codes", "scales", "zero_points")}

    def take(name: str, bits: int, count: int) -> npt.NDArray[np.int64]:
        stream, size = streams[name], -(-count * bits // 8)
        streams[name] = stream[size:]
        ones = np.unpackbits(stream[:size], count=count * bits, bitorder="little").reshape(count, bits)
        return ones @ (1 << np.arange(bits)) - 2 ** (bits - 1)

    weights = {}
    for name, (bits, _, shape, *exceptions) in layers.items():
        codes = take("codes", bits, int(np.prod(shape))).reshape(shape[0], -1)
        shifted = exceptions and exceptions[0].get("zero_point")
        zeros = take("zero_points", bits, shape[0])[:, None] if shifted else 0
        weights[name] = ((codes - zeros) * streams["scales"][: shape[0], None]).reshape(shape)
        streams["scales"] = streams["scales"][shape[0] :]
    network = open_run(searched, run_policy(searched)).network
    for name, weight in weights.items():
        layer = network.get_submodule(name)
        with torch.no_grad():
            expected = layer.weight_quantizer(layer.weight)  # type: ignore[operator]
        assert np.allclose(weight, expected, rtol=1e-6, atol=0), name


@needs_shared_data
def test_resnet20_takes_what_the_size_model_predicts(tmp_path: Path) -> None:
    model = get_model("resnet20").eval()
    load_weights(model, RESNET20)
    sample = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layers = trace(model, sample[:1])
    policy = BitPolicy({s.name: LayerBits(2 + i * 3 % 7, 2 + i * 5 % 7) for i, s in enumerate(layers)})
    network = prepare(model, policy, calibration=calibrate(model, [sample], range(2, 9))).eval()
    stored = [(layer.weight_quantizer, layer.weight) for _, layer in quantizable_layers(network)]
    zeros = [(q.bits, q.encode(weight).zero_point) for q, weight in stored]
    predicted = sum(size_bytes(layer, policy[layer.name]) for layer in layers)
    predicted += sum(bits * zero.numel() / 8 for bits, zero in zeros if zero is not None)
    _save(tmp_path / "exact", network, policy, sample[:1])
    assert (tmp_path / "exact").stat().st_size == pytest.approx(predicted + 8 * 688, rel=0.02), "688 channels"
    assert _same(network, load_packed(tmp_path / "exact", get_model("resnet20")), sample)
    _save(tmp_path / "folded", fold_norms(network, sample[:1]), policy, sample[:1], folded=True)
    assert (tmp_path / "folded").stat().st_size == pytest.approx(predicted, rel=0.02)


def _damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("model", "damage", "message"),
    [
        (nn.Linear(2, 2), None, "the weight of layer 'conv' is \\[8, 2, 3, 3\\] in the file and missing in the model"),
        (Net(), _damaged, "cannot load .* into Net"),
        (Net(), lambda path: path.unlink(), "does not exist; haq export --format packed writes one"),
        (Net(), lambda path: path.write_bytes(b"PK"), "cannot load .* into Net"),
    ],
)
def test_a_file_that_does_not_fit_is_one_clear_line(
    prepared: Callable[..., Prepared],
    tmp_path: Path,
    model: nn.Module,
    damage: Callable[[Path], None] | None,
    message: str,
) -> None:
    network, policy = prepared("linear", 4, 4)
    path = tmp_path / "net"
    _save(path, network, policy, IMAGES[:1])
    if damage is not None:
        damage(path)
    with pytest.raises(ModelError, match=message) as caught:
        load_packed(path, model)
    assert "\n" not in str(caught.value)
