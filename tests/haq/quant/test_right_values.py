"""Trained networks that were once scored wrongly, each compared with the same function in plain modules."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from haq.data import ImageData, get_data
from haq.layers import trace
from haq.policy import BitPolicy, LayerBits
from haq.quant import get_scheme
from haq.quant.pipeline import Recipe, Result, apply_policy, uniform_policy
from haq.threads import one_thread

from ..networks import Standardised

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 1, 8, 8) / 8 - 1).astype(np.float32)
    folder = tmp_path_factory.mktemp("digits")
    np.savez(folder / "train.npz", x=x[:1400], y=y[:1400])
    np.savez(folder / "test.npz", x=x[1400:], y=y[1400:])
    return get_data(f"npz:{folder}", 200, 0)


def trained(network: nn.Module, data: ImageData, steps: int = 100) -> nn.Module:
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    network.train()
    with one_thread():
        for step in range(steps):
            x, y = data.train.batch([i % len(data.train) for i in range(64 * step, 64 * step + 64)])
            output = network(x)
            loss = F.cross_entropy(output[0] if isinstance(output, tuple) else output, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def applied(network: nn.Module, data: ImageData, bits: int, ptq: tuple[str, ...] = ()) -> Result:
    policy = uniform_policy(trace(network, data.train.batch([0])[0]), bits, bits)
    return apply_policy(network, policy, data, Recipe(get_scheme("linear"), ptq))


def alike(network: nn.Module, plain: nn.Module, data: ImageData, bits: int) -> None:
    """Both have the same accuracy, size and outputs."""
    found, expected = applied(network, data, bits), applied(plain, data, bits)
    assert found.top1 == expected.top1
    assert found.size_bytes == expected.size_bytes
    x = data.test.batch(range(50))[0]
    with torch.no_grad():
        assert torch.allclose(found.model(x), expected.model(x), rtol=1e-4, atol=1e-4)


def convolutions(make: Callable[[int, int], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    pooled = (nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))
    return nn.Sequential(make(1, 16), nn.ReLU(), make(16, 16), nn.ReLU(), *pooled)


def test_weight_standardisation_is_as_good_as_the_standardised_weights(data: ImageData) -> None:
    network = trained(convolutions(lambda a, b: Standardised(a, b, 3, padding=1)), data)
    plain = convolutions(lambda a, b: nn.Conv2d(a, b, 3, padding=1))
    plain.load_state_dict(network.state_dict())
    for index in (0, 2):
        weight = network[index].weight.detach()  # type: ignore[index, union-attr]
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        plain[index].weight.data = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5) * 0.3  # type: ignore[assignment, operator]
    alike(network, plain.eval(), data, 8)


class Same(nn.Conv2d):
    """TensorFlow's "same" with a stride: one zero right and below."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def test_padding_of_its_own_is_as_good_as_a_layer_that_pads(data: ImageData) -> None:
    network = trained(convolutions(lambda a, b: Same(a, b, 3, stride=2)), data)

    def padded(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(inputs, outputs, 3, stride=2))

    plain = convolutions(padded)
    inner = {re.sub(r"^([02])\.", r"\1.1.", key): value for key, value in network.state_dict().items()}
    plain.load_state_dict(inner)
    alike(network, plain.eval(), data, 8)


@pytest.mark.parametrize("ptq", [(), ("cle", "adaround", "bias")])
def test_weight_norm_is_as_good_as_without_it(data: ImageData, ptq: tuple[str, ...]) -> None:
    network = trained(
        convolutions(lambda a, b: parametrizations.weight_norm(nn.Conv2d(a, b, 3, padding=1))), data, steps=60
    )
    found = applied(network, data, 4, ptq)
    for index in (0, 2):
        parametrize.remove_parametrizations(network[index], "weight")  # type: ignore[index, arg-type]
    assert found.top1 == applied(network, data, 4, ptq).top1


class Auxiliary(nn.Module):
    def __init__(self, head: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        if head:
            self.aux = nn.Linear(256, 10)  # registered first, and called in training alone
        self.c1, self.c2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.fc, self.pool = nn.Linear(256, 10), nn.AdaptiveAvgPool2d(4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.c1(x))
        y: Tensor = self.fc(self.pool(F.relu(self.c2(x))).flatten(1))
        return (y, self.aux(self.pool(x).flatten(1))) if self.training and hasattr(self, "aux") else y


def test_a_head_for_training_alone_is_neither_quantized_nor_counted(data: ImageData) -> None:
    network, plain = trained(Auxiliary(head=True), data), Auxiliary(head=False)
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if "aux" not in key})
    alike(network, plain.eval(), data, 4)
    tuned = apply_policy(
        network, BitPolicy.uniform(["c1", "c2", "fc"], 3), data, Recipe(get_scheme("linear"), (), qat_steps=5)
    )
    assert set(tuned.top1) == {"calibrated", "fine-tuned"}


class HeadFirst(Auxiliary):
    def __init__(self) -> None:
        super().__init__(head=False)
        self._modules = {"fc": self._modules.pop("fc"), **self._modules}


def test_the_ends_are_those_that_are_called_first_and_last(data: ImageData) -> None:
    network, plain = trained(HeadFirst(), data), Auxiliary(head=False)
    plain.load_state_dict(network.state_dict())
    assert next(name for name, _ in network.named_children()) == "fc"
    policy = uniform_policy(trace(network, data.train.batch([0])[0]), 2, 2)
    assert [(name, bits.w_bits) for name, bits in policy.items()] == [("c1", 8), ("c2", 2), ("fc", 8)]
    alike(network, plain.eval(), data, 2)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(8, 32)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), 2)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.encoder(self.embed(x.flatten(1, 2))).flatten(1))
        return y


def test_one_bit_inside_an_encoder_is_what_its_layers_give(data: ImageData) -> None:
    network = trained(Encoder(), data)
    layers = [layer.name for layer in trace(network, data.train.batch([0])[0])]
    assert [name for name in layers if "out_proj" in name] == [f"encoder.layers.{i}.self_attn.out_proj" for i in (0, 1)]
    inside = [name for name in layers if "linear" in name]
    policy = BitPolicy({name: LayerBits(1, 1) if name in inside else LayerBits(8, 8) for name in layers})
    found = apply_policy(network, policy, data, Recipe(get_scheme("linear")))
    x = data.test.batch(range(len(data.test)))[0]
    with torch.no_grad():
        scored = found.model(x)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            called = found.model(x)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        assert torch.equal(scored, called)
        assert (scored - network(x)).abs().mean() > 0.1
