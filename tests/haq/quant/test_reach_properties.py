"""Properties of random networks drawn from a small grammar."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from haq.layers import quantizable_layers, run_sample, watched
from haq.policy import BitPolicy
from haq.quant import calibrate, load_quantized, prepare, save_quantized
from haq.quant.modules import Quantized
from haq.quant.quantizers.base import Quantizer
from haq.quant.reach import reached

from ..networks import Halves, Padded, Standardised

pytestmark = pytest.mark.filterwarnings("ignore")

_CHANNELS = 4


class Block(nn.Module):
    """One rule of the grammar: a way to hold a convolution, and a way to call it."""

    def __init__(self, owned: str, called: str, groups: int, residual: bool) -> None:
        super().__init__()
        made: dict[str, Any] = {"standardised": Standardised, "padded": Padded, "halves": Halves}
        options: dict[str, Any] = {"padding": 0 if owned == "padded" else 1}
        if owned not in ("halves", "standardised"):
            options["groups"] = groups
        self.conv = made.get(owned, nn.Conv2d)(_CHANNELS, _CHANNELS, 3, **options)
        if owned == "weight norm":
            parametrizations.weight_norm(self.conv)
        self.norm = nn.BatchNorm2d(_CHANNELS) if owned == "batch norm" else nn.Identity()
        self.called, self.residual = called, residual
        self.held = {"list": [self.conv], "dict": {"conv": self.conv}}.get(called)
        conv = self.conv
        self.function = (lambda x: conv(x)) if called == "closure" else None

    def run(self, x: Tensor) -> Any:
        if self.called == "list":
            return self.held[0](x)  # type: ignore[index]
        if self.called == "dict":
            return self.held["conv"](x)  # type: ignore[index, call-overload]
        if self.called == "closure":
            return self.function(x)  # type: ignore[misc]
        if self.called == "keyword" and type(self.conv) is nn.Conv2d:
            return self.conv(input=x)
        if self.called == "twice":
            return self.conv(F.relu(self.conv(x)))
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.run(x))
        return F.relu(y + x if self.residual else y)


class Drawn(nn.Module):
    def __init__(self, blocks: list[tuple[str, str, int, bool]], container: str, encoder: bool, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(1, _CHANNELS, 3, padding=1)
        made = [Block(*block) for block in blocks]
        self.blocks: Any = nn.ModuleList(made) if container == "module list" else nn.Sequential(*made)
        layer = nn.TransformerEncoderLayer(8 * _CHANNELS, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1) if encoder else None
        self.head = nn.Linear(8 * 8 * _CHANNELS, 3)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        if self.encoder is not None:
            x = self.encoder(x.permute(0, 2, 1, 3).flatten(2))
        y: Tensor = self.head(x.flatten(1))
        return y


BLOCKS = st.tuples(
    st.sampled_from(["plain", "standardised", "padded", "halves", "weight norm", "batch norm"]),
    st.sampled_from(["attribute", "list", "dict", "closure", "keyword", "twice"]),
    st.sampled_from([1, 2, _CHANNELS]),
    st.booleans(),
)
NETWORKS = st.builds(
    Drawn, st.lists(BLOCKS, min_size=1, max_size=3), st.sampled_from(["module list", "sequential"]), st.booleans(),
    st.integers(0, 3),
)  # fmt: skip
X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def quantized(network: nn.Module, bits: int) -> tuple[nn.Module, BitPolicy]:
    _, layers = reached(network, X[:1])  # with identity quantizers, equal to the bit
    policy = BitPolicy.uniform([layer.name for layer in layers], bits)
    return prepare(network, policy, calibration=calibrate(network, [X], [bits])).eval(), policy


def layer_outputs(network: nn.Module) -> dict[str, list[Tensor]]:
    seen: dict[str, list[Tensor]] = {}
    layers = {module: name for name, module in quantizable_layers(network)}
    with watched(layers, after=lambda layer, x, y: seen.setdefault(layers[layer], []).append(y.clone())):
        run_sample(network, X)
    return seen


@settings(max_examples=20, deadline=None)
@given(network=NETWORKS)
def test_identity_quantizers_change_nothing_and_one_bit_changes_every_layer(network: Drawn) -> None:
    opened, _ = reached(network.eval(), X[:1])
    ones, policy = quantized(network, 1)
    floats, found = layer_outputs(opened), layer_outputs(ones)
    assert set(policy) == set(floats) == set(found) == {name for name, _ in quantizable_layers(opened)}
    for name, calls in floats.items():
        assert all(not torch.allclose(a, b) for a, b in zip(calls, found[name], strict=True)), name


@settings(max_examples=4, deadline=None, derandomize=True)  # each is exported, which takes seconds
@given(network=NETWORKS, bits=st.sampled_from([4, 8]))
def test_the_exported_file_and_the_kept_one_agree_with_the_network(network: Drawn, bits: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from haq.exports.onnx import to_onnx

    made, policy = quantized(network.eval(), bits)
    expected = run_sample(made, X)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        save_quantized(path, made, policy, X[:1])
        assert torch.equal(run_sample(load_quantized(path, network), X), expected)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(to_onnx(made, X[:1]), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": X.numpy()})
    assert np.abs(found - expected.numpy()).max() <= step_of(made.head)


def step_of(head: Any) -> float:
    """Returns the change of an output for one step of the last layer's input."""
    assert isinstance(head, Quantized)
    assert isinstance(head.input_quantizer, Quantizer)
    scale: Any = head.input_quantizer.scale
    return float(scale.max() * head.weight.abs().max()) + 1e-5
