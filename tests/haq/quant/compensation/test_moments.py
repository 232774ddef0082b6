"""Moments of a layer's inputs, compared with those from unfolding its whole input."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers.kinds.convolution import CONVOLUTION
from haq.quant.compensation import Reads
from haq.quant.compensation.moments import Moments, columns, positions

LAYERS: dict[str, nn.Conv2d | nn.Linear] = {
    "plain": nn.Conv2d(4, 6, 3, padding=1),
    "strided": nn.Conv2d(4, 6, (3, 1), stride=2, padding="valid", dilation=2),
    "same": nn.Conv2d(4, 6, 2, padding="same"),
    "dilated": nn.Conv2d(4, 6, (1, 3), stride=(1, 2), padding=(0, 2), dilation=(1, 2)),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4),
    "linear": nn.Linear(9, 5),
    "without bias": nn.Linear(9, 5, bias=False),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def everything(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Returns all columns that the weight is multiplied by, `(groups, K, n)`, from PyTorch's unfold."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    unfolded = F.unfold(CONVOLUTION.padded(layer, x), layer.kernel_size, layer.dilation, 0, layer.stride)
    return unfolded.transpose(0, 1).reshape(layer.groups, unfolded.shape[1] // layer.groups, -1)


def moments(layer: nn.Conv2d | nn.Linear, *batches: Tensor) -> Moments:
    reads = Reads(layer, len(batches))
    for x in batches:
        reads.add(x)
    found = reads.moments()
    assert found is not None
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_those_of_all_windows_where_these_are_few(name: str) -> None:
    layer = LAYERS[name]
    batches = [random(3, 4, 9, 9, seed=seed) + seed for seed in range(2)]
    read = torch.cat([everything(layer, x) for x in batches], 2).double()
    found, mean = moments(layer, *batches), read.mean(2)
    expected = read @ read.transpose(1, 2) / read.shape[2]
    if name != "without bias":  # there is no bias to subtract a mean error from
        expected = expected - mean[:, :, None] * mean[:, None, :]
    torch.testing.assert_close(found.gram.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.mean.double(), mean, rtol=1e-4, atol=1e-4)
    assert found.samples == read.shape[2]
    assert found.cross is None
    assert found.exact_mean is found.mean


@pytest.mark.parametrize("name", LAYERS)
def test_weight_times_columns_are_the_outputs_at_these_positions(name: str) -> None:
    layer, x = LAYERS[name], random(2, 4, 9, 9)
    chosen = positions(layer, x, 7, torch.Generator().manual_seed(0))
    assert len(chosen) == 7
    with torch.no_grad():
        y = layer(x)
    outputs = y.flatten(0, -2) if isinstance(layer, nn.Linear) else y.permute(0, 2, 3, 1).flatten(0, 2)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight.detach().reshape(groups, len(layer.weight) // groups, -1)
    found = (weight @ columns(layer, x, chosen)).flatten(0, 1).t()
    bias = 0 if layer.bias is None else layer.bias.detach()
    torch.testing.assert_close(found + bias, outputs[chosen], rtol=1e-4, atol=1e-5)


def test_of_many_windows_a_random_part_is_taken_the_same_every_time() -> None:
    layer, x = nn.Conv2d(2, 3, 3), random(8, 2, 40, 40)
    one, other = (moments(layer, x) for _ in range(2))
    assert one.samples == 8192 < everything(layer, x).shape[2]
    assert torch.equal(one.gram, other.gram)
    whole = everything(layer, x)[0]
    torch.testing.assert_close(one.gram[0], torch.cov(whole, correction=0), rtol=0, atol=0.15)


def test_moments_of_two_inputs_go_together() -> None:
    layer = nn.Linear(6, 3)
    exact, given = random(50, 6) + 2, random(50, 6, seed=1) - 1
    reads = Reads(layer, 1)
    reads.add(given, exact)
    found = reads.moments()
    assert found is not None
    assert found.cross is not None
    centred = (exact - exact.mean(0)).t() @ (given - given.mean(0)) / 50
    torch.testing.assert_close(found.cross[0], centred, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.mean[0], given.mean(0))
    torch.testing.assert_close(found.exact_mean[0], exact.mean(0))


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_joined_they_are_as_added_one_after_the_other(alike: bool, offset: float) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    batches = [(torch.rand(3, 4, 6, 6) + offset, torch.rand(3, 4, 6, 6) + offset) for _ in range(5)]
    whole, *halves = (Reads(layer, 5) for _ in range(3))
    for number, (x, exact) in enumerate(batches):
        for reads in (whole, halves[number % 2]):
            reads.add(x, None if alike else exact)
    one, two = whole.moments(), halves[0].joined(halves[1]).moments()
    assert one is not None
    assert two is not None
    for name in ("gram", "mean", "exact_mean", *([] if alike else ["cross"])):
        torch.testing.assert_close(getattr(two, name), getattr(one, name), rtol=1e-4, atol=2e-6 * (1 + offset))
    assert two.samples == one.samples
    assert (one.cross is None) == (two.cross is None) == alike
    assert halves[0].joined() is halves[0]


@pytest.mark.parametrize("offset", [100.0, 3000.0])
def test_a_large_mean_leaves_the_digits_of_a_covariance(offset: float) -> None:
    x, noise = random(400, 8), 0.1 * random(400, 8, seed=1)
    layer, true = nn.Linear(8, 4), x - x.mean(0)
    reads = Reads(layer, 4)
    for part, other in zip((x + offset).split(100), (x + noise + offset).split(100), strict=True):
        reads.add(part, other)
    found = reads.moments()
    assert found is not None
    assert found.cross is not None
    torch.testing.assert_close(found.gram[0], true.t() @ true / 400, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.cross[0], (true + noise).t() @ true / 400, rtol=0, atol=2e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_has_no_moments(value: float) -> None:
    x = random(5, 4)
    x[2, 1] = value
    for exact in (None, random(5, 4)):
        reads = Reads(nn.Linear(4, 2), 1)
        reads.add(x, exact)
        assert reads.moments() is None


def test_what_is_not_finite_in_the_float_network_has_no_moments() -> None:
    reads = Reads(nn.Linear(4, 2), 1)
    reads.add(random(5, 4), torch.full((5, 4), float("nan")))
    assert reads.moments() is None


def test_a_layer_that_read_nothing_has_no_moments() -> None:
    assert Reads(nn.Linear(4, 2), 1).moments() is None


def test_inputs_of_any_type_are_added_up_in_single_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        found = moments(nn.Linear(4, 2).to(dtype), random(30, 4).to(dtype))
        assert found.gram.dtype == torch.float32
        torch.testing.assert_close(found.gram, moments(nn.Linear(4, 2), random(30, 4)).gram, rtol=0.02, atol=0.02)
