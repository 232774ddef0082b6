"""The divergence to second order, compared with running the quantized network."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import Images
from haq.layers import evaluating, quantizable_layers
from haq.quant.calibration import calibrate
from haq.search.sensitivity import measure_sensitivity


class Residual(nn.Module):
    """Activations in place, grouped and depthwise convolutions, a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="reflect", groups=8)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        x = F.relu_(self.norm(self.grouped(x)) + x)
        y: Tensor = self.head(self.depthwise(x).flatten(1))
        return y


class Shared(nn.Module):
    """Calls a layer twice; the first result is overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(F.relu_(self.again(F.relu_(self.stem(x)))))
        y: Tensor = self.head(F.relu_(x).mean((2, 3)))
        return y


class Sequences(nn.Module):
    """Reads `(N, T, C)`, with a layer without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(24, 12, bias=False), nn.Linear(12, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 1, 3).flatten(2)  # rows of the picture
        y: Tensor = self.head((x + self.down(F.gelu(self.up(x)))).mean(1))
        return y


def images(count: int = 192, seed: int = 0) -> Images:
    rng = torch.Generator().manual_seed(seed)
    x = F.interpolate(torch.randn(count, 3, 3, 3, generator=rng), (8, 8), mode="bilinear")
    return Images(x.numpy(), torch.randint(4, (count,), generator=rng).numpy(), (), ())


def inputs() -> Tensor:
    return images().batch(range(192))[0]


def network(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for _ in range(3):
            model(inputs())
        model.get_submodule("head").weight.mul_(2)  # type: ignore[operator, union-attr]
    return model.eval()


def measured(model: nn.Module, samples: Images, widths: list[int], measures: list[str], seed: int = 0):  # type: ignore[no-untyped-def]
    names = [name for name, _ in quantizable_layers(model)]
    calibration = calibrate(model, [inputs()[:96]], widths)
    return measure_sensitivity(model, calibration, samples, names, widths, measures, seed=seed)


@pytest.mark.parametrize("make", [Residual, Shared, Sequences])
def test_small_changes_move_the_answers_as_predicted(make: Callable[[], nn.Module]) -> None:
    """Signs are drawn for every image, so that a few hundred images give the sum to within a few per cent."""
    model = network(make)
    found = measured(model, images(512), [5, 6], ["kl"])["kl"]
    drawn = [measured(model, images(512), [5, 6], ["fisher"], seed)["fisher"] for seed in range(4)]
    for which in ("weights", "activations"):
        exact = getattr(found, which)
        estimate = np.mean([getattr(one, which) for one in drawn], axis=0)
        assert bool((estimate > 0).all())
        assert estimate.sum() == pytest.approx(exact.sum(), rel=0.15)
        assert np.abs(np.log(estimate / exact)).max() < 0.4, "every layer and width"


def test_results_depend_on_the_seed_but_not_on_labels() -> None:
    model, samples = network(Residual), images()
    one, again = (measured(model, samples, [3, 6], ["fisher"], seed=1)["fisher"] for _ in range(2))
    other = measured(model, samples, [3, 6], ["fisher"], seed=2)["fisher"]
    swapped = Images(samples.x, (samples.y + 1) % 4, (), ())
    assert np.array_equal(one.weights, again.weights)
    assert np.array_equal(one.weights, measured(model, swapped, [3, 6], ["fisher"], seed=1)["fisher"].weights)
    assert not np.array_equal(one.weights, other.weights)
    np.testing.assert_allclose(one.weights, other.weights, rtol=0.8)


def test_the_network_and_its_gradients_are_left_as_they_were() -> None:
    model = network(Shared)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    measured(model, images(), [4], ["fisher"])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    with evaluating(model), torch.no_grad():
        assert bool(torch.isfinite(model(inputs())).all())
