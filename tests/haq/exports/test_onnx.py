"""ONNX files, opened by onnxruntime: same outputs, true ranges, real integer types."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from haq.data import get_data
from haq.errors import ConfigError, ModelError
from haq.exports import export_run
from haq.exports.formats import run_policy
from haq.exports.onnx import to_onnx
from haq.exports.packing import coded_layers
from haq.exports.run_network import open_run
from haq.policy import BitPolicy, LayerBits
from haq.quant import calibrate, get_scheme, prepare
from haq.quant.quantizers.uniform import uniform
from haq.runs import RunFolder

from .conftest import GRIDS, IMAGES, WIDTHS, Prepared, Side


def _run(content: bytes, x: Tensor, plain: bool = False) -> Any:
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    options = onnxruntime.SessionOptions()
    if plain:  # otherwise onnxruntime rounds biases to integers, too
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


def _types(content: bytes) -> dict[str, str]:
    constants = onnx.load_from_string(content).graph.initializer
    return {constant.name: TensorProto.DataType.Name(constant.data_type) for constant in constants}


def test_a_run_keeps_its_accuracy_in_onnxruntime(
    searched: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.onnx"
    assert export_run(searched, "onnx", path) == path
    assert capfd.readouterr() == ("", ""), "PyTorch's exporter says nothing"
    content = path.read_bytes()
    x, y = (data := get_data("digits", 1000, 0).test).batch(range(len(data)))
    logits = _run(content, x)
    with torch.no_grad():
        expected = open_run(searched, run_policy(searched)).network(x).numpy()
    assert abs((logits.argmax(1) == y.numpy()).mean() - (expected.argmax(1) == y.numpy()).mean()) <= 0.002
    assert (y.numpy() == expected.argmax(1)).mean() > 0.8, "the network learnt something"
    assert np.abs(logits - expected).mean() < 1e-2 * np.abs(expected).mean()

    types = _types(content)
    assert [types[f"{name}.weight_codes"] for name in WIDTHS] == ["UINT8", "INT4", "INT4"]
    assert [types[f"{name}.input_zero_point"] for name in WIDTHS] == ["UINT8", "UINT8", "UINT4"]
    graph = onnx.load_from_string(content).graph
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
    assert not any(name.encode() in content for name in (str(tmp_path), "net.py", "site-packages")), "no paths inside"


def test_every_form_of_grid_gives_the_same_outputs(prepared: Callable[..., Prepared]) -> None:
    networks = Side(prepared(scheme, w, a, **options)[0] for scheme, w, a, options in GRIDS).eval()
    with torch.no_grad():
        expected = networks(IMAGES).numpy().reshape(len(IMAGES), len(GRIDS), -1)
    found = _run(to_onnx(networks, IMAGES[:1]), IMAGES).reshape(expected.shape)
    for place, grid in enumerate(GRIDS):
        assert found[:, place] == pytest.approx(expected[:, place], rel=1e-4, abs=1e-4), grid


def test_constants_are_the_codes_themselves(prepared: Callable[..., Prepared]) -> None:
    network, _ = prepared("linear", 4, 4)
    layer = network.get_submodule("conv")
    assert isinstance(layer, nn.Conv2d)
    graph = onnx.load_from_string(to_onnx(network, IMAGES[:1])).graph
    constants = {constant.name: constant for constant in graph.initializer}
    codes = numpy_helper.to_array(constants["conv.weight_codes"]).astype(int)
    stored = layer.weight_quantizer.encode(layer.weight)  # type: ignore[operator,union-attr]
    assert np.array_equal(codes, stored.codes.numpy())
    assert len(constants["conv.weight_codes"].raw_data) == codes.size / 2
    assert "conv.weight" not in constants, "the float weights are gone"


class _Branches(nn.Module):
    """The same layers with channel 3 of every size, side by side in one file; `(N, branches, 3)`."""

    def __init__(self, sizes: tuple[float, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3)
        self.bodies = nn.ModuleList(nn.Conv2d(8, 8, 3, groups=4) for _ in sizes)
        self.hidden, self.head = nn.ModuleList(nn.Linear(32, 8) for _ in sizes), nn.Linear(8, 3)
        for layers in zip(self.bodies, self.hidden, sizes, strict=True):
            for layer in layers[:2]:
                nn.init.normal_(layer.weight, std=0.1)
                with torch.no_grad():
                    layer.weight[3] *= layers[2]
                    layer.bias[3] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        bodies = [torch.relu(body(x)).flatten(1) for body in self.bodies]
        hidden = [torch.relu(layer(x)) for layer, x in zip(self.hidden, bodies, strict=True)]
        return torch.stack([self.head(x) for x in hidden], 1)


@pytest.mark.parametrize(
    ("scheme", "bits", "options"),
    [("linear", 8, {}), ("asymmetric", 8, {}), ("dorefa", 8, {"granularity": "channel"})],
)
def test_onnxruntimes_optimiser_changes_nothing(scheme: str, bits: int, options: dict[str, str]) -> None:
    """Integer kernels hold biases in steps of S_w·S_x and add products in pairs; neither may overflow."""
    sizes = (1.0, 1e-7, 0.0)
    net, x, chosen = _Branches(sizes).eval(), torch.randn(32, 3, 6, 6), get_scheme(scheme).with_options(**options)
    names = [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    policy = BitPolicy({name: LayerBits(bits, 8) for name in names})
    network = prepare(net, policy, chosen, calibrate(net, [x], {bits, 8}, chosen)).eval()
    with torch.no_grad():
        expected = network(x).numpy()
    found = _run(to_onnx(network, x[:1]), x)
    for place, size in enumerate(sizes):
        gap, reach = np.abs(found[:, place] - expected[:, place]).max(), np.ptp(expected[:, place])
        assert gap <= 2 * reach / 255, size


class _Bare(nn.Module):
    """Layers without biases, which onnxruntime turns into integer kernels, on signed and unsigned inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, groups=2, bias=False)
        self.depthwise, self.tokens = nn.Conv2d(8, 8, 3, groups=8, padding=1, bias=False), nn.Linear(4, 6, bias=False)
        self.head = nn.Linear(48, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(self.grouped(torch.relu(self.stem(x)))))
        logits: Tensor = self.head(torch.relu(self.tokens(x.flatten(2))).flatten(1))
        return logits


def test_symmetric_and_asymmetric_weights_side_by_side() -> None:
    x, nets = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0)), []
    for bits in (1, 3, 4, 6, 8):
        torch.manual_seed(bits)
        net = _Bare().eval()
        policy = BitPolicy({name: LayerBits(bits, 8) for name in ("stem", "grouped", "depthwise", "tokens", "head")})
        network = prepare(net, policy, calibration=calibrate(net, [x], {bits, 8})).eval()
        for place, (_, layer) in enumerate(coded_layers(network)):
            if place % 3 != bits % 3:  # zero points at both ends of the range and between
                spread = torch.linspace(-2, 2, len(layer.weight)).view(-1, *[1] * (layer.weight.dim() - 1))
                layer.weight = nn.Parameter(layer.weight + layer.weight.std() * spread)
                layer.weight_quantizer = uniform(layer.weight, bits, symmetric=False, signed=True)
        nets.append(network)
    networks = Side(nets).eval()
    with torch.no_grad():
        expected = networks(x).numpy()
    content = to_onnx(networks, x[:1])
    assert _run(content, x, plain=True) == pytest.approx(expected, abs=1e-5 * float(np.abs(expected).max()))
    gap = np.abs(_run(content, x) - expected).reshape(len(x), len(nets), -1)
    reach = np.ptp(expected.reshape(len(x), len(nets), -1), axis=(0, 2))
    assert (gap.max(2) <= 1e-4 * reach).mean() > 0.95, "all but a value that lies between two codes"
    assert (gap.max(2) <= 0.02 * reach).all()

    graph = onnx.load_from_string(content).graph
    constants = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    types, made = _types(content), {node.output[0]: node for node in graph.node}
    mixed = 0
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and types.get(node.input[0]) in ("INT8", "UINT8"):
            assert len(node.input) == 3, "kernels of onnxruntime 1.26 want zero points"
        if node.op_type == "Conv" and (dequantize := made[node.input[1]]).op_type == "DequantizeLinear":
            zeros = constants[dequantize.input[2]] if len(dequantize.input) > 2 else np.zeros(1)
            if types[dequantize.input[0]] in ("INT8", "UINT8"):
                assert len(np.unique(zeros)) == 1, "and those of convolutions to be the same"
            mixed += len(np.unique(zeros)) > 1
    assert mixed, "4-bit codes keep theirs"


def test_a_layer_that_runs_twice_is_quantized_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(torch.relu(self.fc(x)))
            return y

    torch.manual_seed(0)
    net, x = Twice().eval(), torch.randn(8, 6)
    network = prepare(net, BitPolicy({"fc": LayerBits(4, 6)}), calibration=calibrate(net, [x], [4, 6])).eval()
    with torch.no_grad():
        assert _run(to_onnx(network, x[:1]), x, plain=True) == pytest.approx(network(x).numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("scheme", "bits", "message"),
    [
        ("kmeans", 4, "scheme 'kmeans' stores the weights of layer 'conv' as a table of levels, .*--format packed"),
        ("fp16", 16, "as 16-bit floating point, but this format only has uniform grids; search with --scheme linear"),
        ("qil", 4, "scheme 'qil' quantizes the input of layer 'conv' with QILQuantizer, which is not one uniform grid"),
    ],
)
def test_other_schemes_are_refused_by_name(
    prepared: Callable[..., Prepared], scheme: str, bits: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        to_onnx(prepared(scheme, bits, bits)[0], IMAGES[:1], scheme)


def test_rounding_down_is_refused(prepared: Callable[..., Prepared]) -> None:
    with pytest.raises(ConfigError, match="the input of layer 'conv' is rounded down"):
        to_onnx(prepared("linear", 4, 4, rounding="floor")[0], IMAGES[:1])


def test_a_network_that_pytorch_cannot_export_is_one_line() -> None:
    class Branches(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x) if float(x.sum()) > 0 else x

    network = prepare(Branches(nn.Linear(3, 3)), BitPolicy({"0": LayerBits(4, 4)})).eval()
    with pytest.raises(ModelError, match="PyTorch cannot export Branches to ONNX: ") as caught:
        to_onnx(network, torch.randn(1, 3))
    assert "\n" not in str(caught.value)


def test_the_weights_of_a_recurrent_network_are_in_the_file_once() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(6, 5, batch_first=True), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.rnn(x)[0][:, -1])
            return y

    torch.manual_seed(0)
    network, x = Rows().eval(), torch.randn(8, 3, 6)
    names = ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "head"]
    quantized = prepare(network, BitPolicy.uniform(names, 8), calibration=calibrate(network, [x], [8])).eval()
    content = to_onnx(quantized, x)
    assert sorted(name for name in _types(content) if name.endswith("codes")) == sorted(
        f"{name}.weight_codes" for name in names
    )
    for plain in (True, False):
        assert np.abs(_run(content, x, plain) - quantized(x).detach().numpy()).max() < 1e-5


def test_a_network_that_makes_the_number_of_samples_a_constant_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.state = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(x) + self.state(x.new_ones(len(x), 3))
            return y

    network = prepare(Net(), BitPolicy({"first": LayerBits(4, 4)})).eval()
    with pytest.raises(ModelError, match="PyTorch cannot export Net to ONNX for any number of samples.*x.shape.0. ins"):
        to_onnx(network, torch.randn(1, 3))
