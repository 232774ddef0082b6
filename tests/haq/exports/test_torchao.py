"""torchao files, applied by `torchao.quantize_`."""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchao.core.config import config_from_dict
from torchao.quantization import FqnToConfig, IntxWeightOnlyConfig, PerAxis, quantize_

from haq.errors import ConfigError
from haq.exports import export_run
from haq.exports.torchao import to_torchao
from haq.layers import reachable, trace
from haq.policy import BitPolicy, LayerBits, Width
from haq.runs import RunFolder

from .conftest import weights_alone

NETWORK = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 32), nn.ReLU(), nn.Linear(32, 10)
)
IMAGES = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LAYERS = trace(NETWORK, IMAGES[:1])


def _applied(policy: BitPolicy) -> nn.Module:
    config = config_from_dict(json.loads(to_torchao(policy, LAYERS)))
    assert isinstance(config, FqnToConfig)
    network = copy.deepcopy(NETWORK)
    quantize_(network, config, filter_fn=None)
    return network


@pytest.mark.parametrize("w_bits", range(2, 9))
@pytest.mark.parametrize("a_bits", [None, 8])
def test_torchao_applies_the_widths(w_bits: int, a_bits: Width) -> None:
    policy = BitPolicy({"0": LayerBits(w_bits, None), "2": LayerBits(w_bits, a_bits), "4": LayerBits(None, None)})
    network = _applied(policy)
    for name in ("0", "2"):
        weight = network.get_submodule(name).weight
        assert type(weight) is not nn.Parameter
        assert len(weight.dequantize()[0].unique()) <= (2**w_bits if name == "2" else 2**w_bits * 9)  # type: ignore[operator,union-attr]
    assert type(network.get_submodule("4").weight) is nn.Parameter
    with torch.no_grad():
        error = (network(IMAGES) - NETWORK(IMAGES)).norm() / NETWORK(IMAGES).norm()
    assert float(error) < 2.0**-w_bits * 6


def test_a_run_of_weights_alone_is_exported(searched: RunFolder, tmp_path: Path) -> None:
    run, best = RunFolder(tmp_path), searched.read_best()
    run.write_config(searched.read_config(), {})
    run.write_layers(searched.read_layers())
    run.write_best(replace(best, policy=BitPolicy({**weights_alone(best.policy), "stem": LayerBits(None, None)})))
    written = export_run(run, "torchao")
    assert isinstance(written, str)
    assert list(config_from_dict(json.loads(written)).fqn_to_config) == list(best.policy)


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Linear(1, 3)])
def test_layers_that_torchao_fails_on_are_refused(layer: nn.Conv2d | nn.Linear) -> None:
    network = nn.Sequential(layer)
    shape = (1, layer.in_channels, 4, 4) if isinstance(layer, nn.Conv2d) else (1, 1)
    with pytest.raises(ConfigError, match="layer '0' .* but torchao cannot quantize a layer that reads one channel"):
        to_torchao(BitPolicy({"0": LayerBits(4, None)}), trace(network, torch.zeros(shape)))
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0))
    with pytest.raises(RuntimeError):  # once this passes, the refusal can go
        quantize_(network, FqnToConfig(fqn_to_config=OrderedDict({"0": config})), filter_fn=None)


@pytest.mark.parametrize(
    ("name", "bits", "message"),
    [
        (
            "0",
            LayerBits(8, 8),
            r"layer '0' \(conv\) has w_bits=8 and a_bits=8, but torchao leaves the activations of conv",
        ),
        ("2", LayerBits(4, 6), "has activations of 8 bits; search with --weights-only"),
        ("2", LayerBits(1, None), "has weights of 2 to 8 bits; search"),
        ("2", LayerBits(16, None), "has weights of 2 to 8 bits; search"),
        ("2", LayerBits(None, 8), "does not quantize activations beside weights in floating point"),
        ("5", LayerBits(4, None), "layer '5' is not in the network"),
    ],
)
def test_what_torchao_cannot_do_is_refused(name: str, bits: LayerBits, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        to_torchao(BitPolicy({name: bits}), LAYERS)


def test_a_refusal_leaves_no_file(make_run: Callable[..., RunFolder], tmp_path: Path) -> None:
    out = tmp_path / "out" / "torchao.json"
    with pytest.raises(ConfigError, match="activations of convolutions"):
        export_run(make_run(), "torchao", out)
    assert not out.parent.exists()


def test_a_table_of_embeddings_has_its_weights_quantized_whatever_its_indices() -> None:
    network = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 3)).eval()
    x = torch.randint(0, 9, (2, 5))
    policy = BitPolicy({"0": LayerBits(4, 6), "1": LayerBits(4, 8)})
    config = config_from_dict(json.loads(to_torchao(policy, trace(network, x[:1]))))
    quantize_(network, config, filter_fn=None)
    assert type(network[0].weight) is not nn.Parameter
    assert network(x).shape == (2, 5, 3)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.Conv1d(3, 4, 3), (1, 3, 8), r"layer '0' \(conv\) .* but torchao runs convolutions in two dimensions only"),
        (nn.Conv3d(3, 4, 3), (1, 3, 4, 4, 4), "convolutions in two dimensions only; export onnx, qonnx or packed"),
        (nn.ConvTranspose2d(3, 4, 3), (1, 3, 4, 4), "torchao does not run transposed layers; export onnx"),
    ],
)
def test_layers_that_torchao_does_not_run_are_refused(layer: nn.Module, shape: tuple[int, ...], message: str) -> None:
    network = reachable(nn.Sequential(layer))
    with pytest.raises(ConfigError, match=message):
        to_torchao(BitPolicy({"0": LayerBits(4, None)}), trace(network, torch.zeros(shape)))


def test_bags_are_refused() -> None:
    layers = trace(nn.Sequential(nn.EmbeddingBag(9, 4)), torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ConfigError, match="layer '0' .* but torchao looks up single rows, not bags of them"):
        to_torchao(BitPolicy({"0": LayerBits(4, None)}), layers)


def test_weights_of_a_recurrent_network_are_those_of_the_network_that_is_searched() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.rnn(x)[0][:, -1])
            return y

    x = torch.randn(2, 4, 8)
    network = reachable(Reader().eval(), x[:1])
    layers = trace(network, x[:1])
    policy = BitPolicy({layer.name: LayerBits(8, None) for layer in layers})
    expected = network(x).detach()
    quantize_(network, config_from_dict(json.loads(to_torchao(policy, layers))), filter_fn=None)
    assert type(network.get_submodule("rnn.weight_hh_l0").weight) is not nn.Parameter
    assert network(x).detach() == pytest.approx(expected, abs=0.05)
