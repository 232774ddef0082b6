import copy
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import IGNORED, Images, Samples
from haq.errors import ConfigError, ModelError
from haq.layers import evaluating, quantizable_layers
from haq.layers.kinds import bias_of
from haq.models.mobilenet import InvertedResidual
from haq.models.resnet import SmallResNet
from haq.policy import BitPolicy, LayerBits
from haq.quant.calibration import Calibration, calibrate
from haq.quant.preparation import prepare
from haq.quant.schemes import get_scheme
from haq.search.sensitivity import (
    MEASURES,
    Sensitivity,
    cached,
    fingerprint,
    load_sensitivity,
    measure_sensitivity,
)
from haq.search.sensitivity.curvature import curvature
from haq.search.sensitivity.graph_network import GraphNetwork
from haq.search.sensitivity.recompute import network_of
from tests.haq.quant.graph.networks import CountingPixels, Tokens, tokens
from tests.haq.quant.ptq.networks import images

WIDTHS = (2, 4, 8)
OUTPUTS = ("kl", "loss", "sqnr")


class Writing(nn.Module):
    """Overwrites tensors that are read again, as some networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(c, 6, 3, padding=1) for c in (3, 6, 6))
        self.add = nn.ReLU(inplace=True)  # neither its name nor its target is a sum
        self.linear = nn.Linear(6 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y = self.conv2(self.add(x))  # the shortcut below reads what the activation wrote
        y += x
        z = self.conv3(torch.relu_(y))
        z += y
        y.mul_(0.5)
        return self.linear((z + y).flatten(1))


class Viewing(nn.Module):
    """Works only with the usual memory layout of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(5 * 64, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.linear2(F.gelu(self.linear1(y.view(y.shape[0], -1))))


class Repeating(nn.Module):
    """Calls a layer twice, with two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False)
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm1(self.again(self.stem(x))))
        y = torch.cat([self.norm2(self.again(y)), y], 2)
        return self.linear(y.mean((2, 3)))


class Deciding(Repeating):
    """Cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) > -1e9 else -x)


def mobile() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    blocks = (InvertedResidual(8, 8, 1, 1), InvertedResidual(8, 12, 2, 2), InvertedResidual(12, 12, 1, 2))
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 4))


def residual() -> nn.Module:
    return SmallResNet((6, 10), (1, 2), (1, 2), 4, 3)


def hooked() -> nn.Module:
    model = residual()
    model.get_submodule("layer1.0.conv2").register_forward_hook(lambda module, args, output: 2 * output)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": residual, "mobile": mobile, "writing": Writing, "viewing": Viewing, "repeating": Repeating,
    "deciding": Deciding, "hooked": hooked,
}  # fmt: skip
WHOLE = ("deciding", "hooked")


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def make_images(count: int = 70) -> Images:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (count, 3, 8, 8)).astype(np.float32)
    return Images(x, rng.integers(0, 4, count), (), ())


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in quantizable_layers(model)]


def calibrated(model: nn.Module, images: Images, widths: Sequence[int] = WIDTHS, scheme: str = "linear") -> Calibration:
    return calibrate(model, [x for x, _ in images.batches(64)], widths, scheme)


def naive(model: nn.Module, policy: BitPolicy, calibration: Calibration, images: Images) -> tuple[float, float, float]:
    quantized = prepare(model, policy, calibration=calibration)
    x, y = images.batch(range(len(images)))
    with evaluating(model), evaluating(quantized):
        exact, output = model(x).double(), quantized(x).double()
    kl = F.kl_div(output.log_softmax(1), exact.log_softmax(1), reduction="batchmean", log_target=True)
    loss = F.cross_entropy(output, y) - F.cross_entropy(exact, y)
    return float(kl), float(loss), float(10 * torch.log10(exact.square().sum() / (exact - output).square().sum()))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NETWORKS)
def test_recomputing_equals_running_everything(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, images = make(name), make_images()
    calibration, names = calibrated(model, images), names_of(model)
    with caplog.at_level(logging.WARNING):
        found = measure_sensitivity(model, calibration, images, names, WIDTHS, OUTPUTS)
    assert ("the whole network is run again" in caplog.text) == (name in WHOLE)
    for row, layer in enumerate(names):
        for column, width in enumerate(WIDTHS):
            for which, bits in (("weights", LayerBits(width, None)), ("activations", LayerBits(None, width))):
                expected = naive(model, BitPolicy({layer: bits}), calibration, images)
                values = [getattr(found[measure], which)[row, column] for measure in OUTPUTS]
                # Summing in another order occasionally moves a value from one code to the next
                slack = 1 if which == "weights" else 50
                errors = np.abs(np.subtract(values, expected)) / slack
                assert errors[0] < 1e-3 * expected[0] + 1e-8, (layer, bits, values, expected)
                assert errors[1] < 1e-3 * abs(expected[1]) + 2e-6, (layer, bits, values, expected)
                assert errors[2] < 1e-2 or expected[2] > 100, (layer, bits, values, expected)


def test_later_layers_are_cheaper() -> None:
    model = make("residual")
    network = network_of(model, names_of(model), make_images(2).batch(range(2))[0])
    shares = [network.share(layer) for layer in network.order]
    assert network.order == ("conv1", *(n for n in names_of(model) if n.startswith("layer")), "linear")
    assert shares == sorted(shares, reverse=True)
    assert shares[0] <= 1
    assert shares[-1] < 0.1


@pytest.mark.parametrize("kind", [Tokens, CountingPixels])
def test_only_what_follows_a_changed_layer_runs_in_an_exported_graph(kind: type[nn.Module]) -> None:
    model = kind().eval()
    x, more = (tokens(2), tokens(5)) if kind is Tokens else (images(2), images(5))
    names = names_of(model)
    network = network_of(model, names, x)
    assert isinstance(network, GraphNetwork)
    assert network.share(names[-1]) < 0.2
    with torch.inference_mode():
        exact, state = network.start(more)
        torch.testing.assert_close(exact, model(more))
        for name in network.order:
            other = copy.deepcopy(model)
            layer = other.get_submodule(name)
            layer.weight.mul_(0.5)  # type: ignore[operator, union-attr]
            changed = network.changed(state, name, network.weights(name, layer.weight, bias_of(layer)))  # type: ignore[arg-type]
            torch.testing.assert_close(changed, other(more))
            network.leave(state, name)


def test_the_model_is_left_as_it_was() -> None:
    model, images = make("residual").train(), make_images()
    before, calibration = fingerprint(model), calibrated(model, images)
    torch.set_num_threads(2)
    measure_sensitivity(model, calibration, images, names_of(model), (4,))
    assert fingerprint(model) == before
    assert all(module.training for module in model.modules())
    assert torch.get_num_threads() == 2
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_wide_layers_lose_little() -> None:
    model, images = make("residual"), make_images()
    calibration = calibrated(model, images, (2, 8, 16))
    found = measure_sensitivity(model, calibration, images, names_of(model), (16, 2, 8))
    assert found["kl"].widths == (2, 8, 16)
    for measure in MEASURES:
        for costs in (found[measure].weight_costs, found[measure].activation_costs):
            assert costs is not None
            losses = np.abs(costs)
            assert (losses[:, 1] < 0.03 * losses[:, 0].max()).all()
            # The loss can also fall by chance, in proportion to a change rather than to its square
            assert (losses[:, 2] < (1e-3 if measure == "loss" else 1e-4) * losses[:, 0].max()).all()
            assert measure == "loss" or (np.diff(costs[:, :2]) < 0).all()
    assert (found["sqnr"].weights[:, 1] > 30).all()


def test_the_number_of_threads_and_the_order_of_layers_change_nothing() -> None:
    model, images = make("mobile"), make_images(130)
    calibration, names, progress = calibrated(model, images), names_of(model), []
    one = measure_sensitivity(model, calibration, images, names, WIDTHS, workers=1)
    two = measure_sensitivity(
        model, calibration, images, names[::-1], WIDTHS, progress=lambda d, t: progress.append((d, t)), workers=2
    )
    for measure in MEASURES:
        np.testing.assert_allclose(one[measure].weights, two[measure].weights[::-1], rtol=1e-5, atol=1e-9)
        expected = two[measure].activations
        assert expected is not None
        np.testing.assert_allclose(one[measure].activations, expected[::-1], rtol=1e-5, atol=1e-9)  # type: ignore[arg-type]
    assert progress[0] == (0, 100)
    assert progress[-1] == (100, 100)
    assert progress == sorted(set(progress))


def test_a_failure_in_one_thread_ends_all() -> None:
    model, images = make("residual"), make_images(200)
    calibration = calibrated(model, images)
    torch.set_num_threads(2)

    def fail(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(model, calibration, images, names_of(model), WIDTHS, progress=fail)
    assert torch.get_num_threads() == 2


def test_schemes_that_leave_activations_alone() -> None:
    model, images = make("residual"), make_images()
    calibration = calibrated(model, images, (4,), "hybrid")
    found = measure_sensitivity(model, calibration, images, names_of(model), (4,))
    assert all(values.activations is None and values.activation_costs is None for values in found.values())
    again = {name: Sensitivity.from_dict(json.loads(json.dumps(v.to_dict()))) for name, v in found.items()}
    assert again["kl"].activations is None
    np.testing.assert_array_equal(again["kl"].weights, found["kl"].weights)


# Curvature


class Hinge(nn.Module):
    """Piecewise linear: the Hessian's blocks are those of the Gauss-Newton matrix."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm, self.linear = nn.Conv2d(1, 2, 2, bias=False), nn.BatchNorm2d(2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.norm(self.conv(x))).flatten(1))


def test_traces_are_those_of_the_hessian() -> None:
    model, x, y = Hinge().eval(), torch.randn(5, 1, 3, 3), torch.tensor([0, 1, 2, 1, 0])
    hidden = torch.relu(model.norm(model.conv(x))).detach()

    def trace(function: Callable[[Tensor], Tensor], at: Tensor) -> float:
        hessian = torch.autograd.functional.hessian(function, at.detach())  # type: ignore[no-untyped-call]
        return float(hessian.reshape(at.numel(), at.numel()).trace())

    def loss(outputs: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y, reduction="sum")

    def behind(h: Tensor) -> Tensor:
        return loss(model.linear(torch.relu(model.norm(h)).flatten(1)))

    expected_weights = [
        trace(lambda w: behind(F.conv2d(x, w)), model.conv.weight),
        trace(lambda w: loss(F.linear(hidden.flatten(1), w, model.linear.bias)), model.linear.weight),
    ]
    expected_inputs = [
        trace(lambda v: behind(model.conv(v)), x),
        trace(lambda v: loss(model.linear(v)), hidden.flatten(1)),
    ]
    found = curvature(model, ("conv", "linear"), x, 4000, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(found.weights, expected_weights, rtol=0.05)
    np.testing.assert_allclose(found.inputs, expected_inputs, rtol=0.05)


def test_the_trace_of_a_linear_model_in_closed_form() -> None:
    """Two classes: H = p(1 − p)·[[1, −1], [−1, 1]] ⊗ x·xᵀ for the weights, so Tr(H) = 2p(1 − p)·‖x‖²."""
    model = nn.Linear(3, 2, bias=False)
    x = torch.tensor([[1.0, 2.0, -2.0]])
    p = float(model(x).softmax(1)[0, 0].detach())
    found = curvature(nn.Sequential(model), ("0",), x, 2000, torch.Generator().manual_seed(0))
    assert found.weights[0] == pytest.approx(2 * p * (1 - p) * 9, rel=0.1)
    apart = float((model.weight[0] - model.weight[1]).detach().square().sum())
    assert found.inputs[0] == pytest.approx(p * (1 - p) * apart, rel=0.1)


def test_the_hessian_predicts_the_divergence() -> None:
    """KL ≈ ½ ΔᵀHΔ, and the mean of the diagonal stands for H: about a factor of two, and the order of layers.

    Weights must not be rounded for a layer's outputs: then what weights lose lies where the curvature is small.
    """
    model, images = make("residual"), make_images(128)
    scheme = get_scheme("linear").with_options(clip="minmax")
    calibration = calibrate(model, [x for x, _ in images.batches(64)], (8,), scheme, compensated=False)
    found = measure_sensitivity(model, calibration, images, names_of(model), (8,))
    for predicted, measured in (
        (found["hessian"].weights, found["kl"].weights),
        (found["hessian"].activations, found["kl"].activations),
    ):
        assert predicted is not None
        assert measured is not None
        ratios = predicted / measured
        assert 1 < np.exp(np.log(ratios).mean()) < 4
        assert np.corrcoef(np.log(predicted[:, 0]), np.log(measured[:, 0]))[0, 1] > 0.6


def test_probes_follow_the_seed() -> None:
    model, images = make("residual"), make_images(70)
    calibration, names = calibrated(model, images, (4,)), names_of(model)
    first, second, third = (
        measure_sensitivity(model, calibration, images, names, (4,), ("hessian",), seed=seed)["hessian"].weights
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()
    np.testing.assert_allclose(first, third, rtol=0.6)


# Files


def example() -> Sensitivity:
    return Sensitivity("sqnr", ("a", "b"), (2, 8), np.array([[3.0, 40.0], [7.0, math.inf]]), np.ones((2, 2)))


def test_costs_of_sqnr_are_noise_over_signal() -> None:
    np.testing.assert_allclose(example().weight_costs, [[10**-0.3, 1e-4], [10**-0.7, 0]])


def test_a_cache_serves_one_key(tmp_path: Path) -> None:
    path, calls = tmp_path / "run" / "sensitivity.json", []

    def compute() -> dict[str, Sensitivity]:
        calls.append(1)
        return {"sqnr": example()}

    for key, count in (({"seed": 0, "widths": (2, 8)}, 1), ({"seed": 0, "widths": (2, 8)}, 1), ({"seed": 1}, 2)):
        found = cached(path, key, compute)
        assert len(calls) == count
        np.testing.assert_array_equal(found["sqnr"].weights, example().weights)
        assert found["sqnr"].layers == ("a", "b")
    for damage in ("{", "[]", '{"version": 1, "key": {"seed": 1}, "measures": {"kl": {}}}', "\xff"):
        path.write_bytes(damage.encode("latin-1"))
        with pytest.raises(ConfigError, match="measure again"):
            load_sensitivity(path)
        cached(path, {"seed": 1}, compute)
        assert load_sensitivity(path, {"seed": 1}).keys() == {"sqnr"}
    assert len(calls) == 6


def test_fingerprints_tell_weights_and_images_apart() -> None:
    model, other, images = make("residual"), make("residual"), make_images()
    assert fingerprint(model) == fingerprint(other)
    assert fingerprint(images) == fingerprint(make_images())
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert fingerprint(model) != fingerprint(other)
    assert fingerprint(images) != fingerprint(images.subset(range(69)))
    assert fingerprint(model, images) not in (fingerprint(model), fingerprint(images))


def test_mistakes() -> None:
    model, images = make("residual"), make_images()
    calibration, names = calibrated(model, images, (4,)), names_of(model)
    with pytest.raises(ConfigError, match="unknown measure 'sqr' .did you mean 'sqnr'"):
        measure_sensitivity(model, calibration, images, names, (4,), ("sqr",))
    with pytest.raises(ConfigError, match="layer 'conv9' is not calibrated"):
        measure_sensitivity(model, calibration, images, ["conv9"], (4,))
    with pytest.raises(ConfigError, match="'conv1' is not calibrated for 5 bits, only for"):
        measure_sensitivity(model, calibration, images, names, (5,))
    with pytest.raises(ConfigError, match="at least 1"):
        measure_sensitivity(model, calibration, Images(images.x[:0], images.y[:0], (), ()), names, (4,))
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    for measure in ("kl", "hessian"):
        with pytest.raises(ModelError, match="NaN or infinite outputs"):
            measure_sensitivity(model, calibration, images, names, (4,), (measure,))


def test_answers_at_positions_without_a_label_do_not_count() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((24, 7, 5)).astype(np.float32), rng.integers(0, 4, (24, 7))
    y = np.where(np.arange(7) < 4, labels, IGNORED)
    other = np.where(np.arange(7)[:, None] < 4, x, x[::-1])
    calibration = calibrate(model, [torch.from_numpy(x)], (2, 4))

    def measured(samples: Samples) -> dict[str, Sensitivity]:
        return measure_sensitivity(model, calibration, samples, ("0", "2"), (2, 4), MEASURES)

    one, two, counted = measured(Samples(x, y)), measured(Samples(other, y)), measured(Samples(x, labels))
    short = measured(Samples(np.ascontiguousarray(x[:, :4]), np.ascontiguousarray(labels[:, :4])))
    for name in MEASURES:
        np.testing.assert_allclose(one[name].weights, two[name].weights, rtol=1e-5, err_msg=name)
        assert not np.allclose(one[name].weights, counted[name].weights, rtol=1e-3)
        if name != "hessian":  # its errors are means over all that a layer reads
            np.testing.assert_allclose(one[name].activation_costs, two[name].activation_costs, rtol=1e-5, err_msg=name)
    for name in OUTPUTS:
        np.testing.assert_allclose(one[name].weights, short[name].weights, rtol=1e-5, err_msg=name)
