import copy
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from haq.data import Samples, get_data
from haq.models import get_model
from haq.policy import BitPolicy
from haq.quant.evaluation import logits_of
from haq.quant.folding import fold_batch_norm
from haq.quant.ptq.equalization import LayerPair, equalize, equalize_pair, find_pairs, input_ranges, output_ranges
from haq.quant.ptq.passes import apply_passes
from tests.haq.quant.graph.networks import CountingPixels, Tokens, tokens
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
def test_the_function_stays_and_ranges_come_closer(name: str, fold: bool) -> None:
    torch.manual_seed(0)
    model = shaken(get_model("resnet20") if name == "resnet20" else Inverted())
    x = images(4)
    equal = equalize(model, x, fold)
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(equal(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert any(isinstance(module, nn.BatchNorm2d) for module in equal.modules()) != fold
    if fold:
        pairs = find_pairs(equal, x[:1])
        assert len(pairs) == (9 if name == "resnet20" else 2), "only those of the residual blocks"
        folded = fold_batch_norm(model, x[:1])
        for pair in pairs:
            assert _gap(equal, pair) < _gap(folded, pair), "equal except for channels whose activations limit the scale"


def _gap(model: nn.Module, pair: LayerPair) -> float:
    """Returns the mean distance between the two ranges of the channels, in powers of e."""
    first, second = (model.get_submodule(layer) for layer in (pair.first, pair.second))
    return float((output_ranges(first) / input_ranges(second)).log().abs().mean())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Samples, Samples]:
    data = get_data("digits", 1000, seed=0)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(4):
        for x, y in data.train.batches(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval(), data.train, data.test


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize(
    ("side", "size"),
    [("out", 1e-3), ("out", 1e-5), ("out", 1e-7), ("out", 0.0), ("in", 1e-7), ("in", 0.0), ("loud", 1e-7)],
)
def test_small_channels_cost_nothing(
    trained: tuple[nn.Module, Samples, Samples], side: str, size: float, bits: int
) -> None:
    """With small weights and a bias in one channel, the paper's scale would let its activations set everyone's step."""
    net, train, test = trained
    net = copy.deepcopy(net)
    first, second = cast(nn.Conv2d, net[0]), cast(nn.Conv2d, net[2])  # type: ignore[index]
    with torch.no_grad():
        for channel, bias in ((3, 0.5), (7, 1.0), (9, -0.3)):
            if side == "in":
                second.weight[:, channel] *= size
            else:
                first.weight[channel] *= size
                first.bias[channel] = bias  # type: ignore[index]
        if side == "loud":
            first.bias[3] = 100.0  # type: ignore[index]
    batches = [x for x, _ in train.subset(range(256)).batches(64)]
    policy, expected = BitPolicy.uniform(["0", "2", "6"], bits), logits_of(net, test)
    errors = []
    for passes in ([], ["cle"]):
        quantized = apply_passes(net, policy, "linear", batches, passes)
        errors.append(float((logits_of(quantized, test) - expected).square().mean().sqrt() / expected.std()))
    assert errors[1] < 1.3 * errors[0] + 0.005


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


def test_a_graph_from_either_tracer_gives_the_same_result() -> None:
    torch.manual_seed(0)
    model, other, x = shaken(Inverted(nn.ReLU6)), CountingPixels(nn.ReLU6).eval(), 0.1 * images(4)
    other.load_state_dict(model.state_dict())
    for fold in (True, False):
        equal, same = equalize(model, x, fold), equalize(other, x, fold)
        assert all(torch.equal(a, b) for a, b in zip(equal.parameters(), same.parameters(), strict=True))
        assert not torch.equal(equal.get_submodule("depthwise.0").weight, model.get_submodule("depthwise.0").weight)


def test_pairs_of_a_network_for_tokens() -> None:
    network, x = Tokens().eval(), tokens(4)
    assert find_pairs(network, x[:1]) == [LayerPair("up", "down", ())]
    with torch.no_grad():
        network.up.weight[3] *= 8
        network.up.bias[3] *= 8
        torch.testing.assert_close(equalize(network, x)(x), network(x), atol=1e-5, rtol=1e-4)


class Around(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (1, 1, 1, 1), value=self.value)


def test_zeros_around_an_image_keep_a_pair() -> None:
    def padded(value: float) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), Around(value), nn.Conv2d(4, 2, 3)).eval()

    assert len(find_pairs(padded(0.0), torch.zeros(1, 1, 8, 8))) == 1
    assert not find_pairs(padded(1.0), torch.zeros(1, 1, 8, 8))
