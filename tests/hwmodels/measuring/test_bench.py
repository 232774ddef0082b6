import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from haq.errors import HardwareError
from haq.hwmodels import CostTable
from haq.hwmodels.kernels.bitserial import backends
from haq.hwmodels.kernels.deployment import BitSerialModule, deploy
from haq.hwmodels.measuring import Plan, measure
from haq.hwmodels.measuring.bench import Bench, bench, int8_network
from haq.layers import trace
from haq.policy import BitPolicy, LayerBits
from haq.quant.calibration import calibrate
from haq.quant.preparation import prepare

SLEEP_S = 0.03


class Small(nn.Module):
    """Layers are not registered in the order of their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 5)
        self.conv2, self.norm2 = nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16)
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return self.linear(torch.relu(self.norm2(self.conv2(y))).mean((2, 3)))


class Branching(Small):
    """Cannot be traced symbolically."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


@dataclass
class Case:
    model: Small
    policy: BitPolicy
    deployed: nn.Module
    table: CostTable
    x: Tensor


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def case(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small()
    model(images)
    model.eval()
    policy = BitPolicy({"linear": LayerBits(8, 8), "conv2": LayerBits(2, 8), "conv1": LayerBits(8, 2)})
    quantized = prepare(model, policy, "linear", calibrate(model, [images], (2, 8)))
    plan = Plan(trace(model, images[:1]), (2, 8), (2, 8), 2, 3)
    table = measure(plan, model, images[:1], tmp_path_factory.mktemp("bench") / "partial", lambda done, total: None)
    return Case(model, policy, deploy(quantized, images[:1]), table, images[:2])


def run(case: Case, **options: object) -> Bench:
    return bench(case.deployed, case.model, case.policy, case.table, case.x, repeats=4, **options)  # type: ignore[arg-type]


def test_predictions_are_the_tables(case: Case) -> None:
    result = run(case)
    assert result.layers == case.table.layers == ("conv1", "conv2", "linear")
    np.testing.assert_array_equal(result.predicted, case.table.layer_costs(case.policy, "latency_ms"))
    assert result.predicted_rest == case.table.rest["latency_ms"]
    assert result.predicted_total == pytest.approx(case.table.cost(case.policy)["latency_ms"])
    assert result.predicted_total == pytest.approx(result.predicted.sum() + result.predicted_rest)
    assert result.error == pytest.approx(result.predicted_total / result.total - 1)


def test_everything_is_measured(case: Case) -> None:
    result = run(case)
    assert result.measured.shape == (3,)
    assert np.isfinite(result.measured).all()
    assert (result.measured > 0).all()
    assert min(result.measured_rest, result.total, result.float32) > 0
    assert result.spread >= 0
    assert result.kernels == backends()[0]


@pytest.mark.parametrize("name", ["conv1", "conv2", "linear"])
def test_times_belong_to_their_layers(case: Case, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    layer = case.deployed.get_submodule(name)
    assert isinstance(layer, BitSerialModule)
    kernel = layer.kernel

    def sleeping(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        time.sleep(SLEEP_S)
        return kernel(x)

    monkeypatch.setattr(layer, "kernel", sleeping)
    result = run(case)
    assert {result.layers[row] for row in np.flatnonzero(result.measured >= 1e3 * SLEEP_S)} == {name}
    assert result.total >= 1e3 * SLEEP_S
    assert max(result.measured_rest, result.float32) < 1e3 * SLEEP_S


def test_the_table_must_price_the_policy(case: Case) -> None:
    four = BitPolicy.uniform(case.policy, 4)
    with pytest.raises(HardwareError, match="w_bits=4 for layer 'conv1': the cost table of .* covers 2,8"):
        bench(case.deployed, case.model, four, case.table, case.x)


def test_threads_are_as_before(case: Case) -> None:
    threads = torch.get_num_threads()
    run(case)
    assert torch.get_num_threads() == threads


# PyTorch's own 8-bit network


def test_int8_is_left_out_without_calibration(case: Case, images: Tensor) -> None:
    assert run(case).int8 is None
    assert int8_network(case.model, []) is None


def test_int8_is_left_out_where_the_network_cannot_be_traced(case: Case, images: Tensor) -> None:
    branching = Branching()
    branching.load_state_dict(case.model.state_dict())
    assert int8_network(branching, [images]) is None


def test_int8_is_made_from_calibration_or_taken_as_it_is(case: Case, images: Tensor) -> None:
    network = int8_network(case.model, [images])
    if network is None:
        pytest.skip("this PyTorch has no 8-bit kernels for this processor")
    for result in (run(case, calibration=[images]), run(case, int8=network)):
        assert result.int8 is not None
        assert result.int8 > 0


def test_the_int8_network_computes_nearly_the_same(case: Case, images: Tensor) -> None:
    before = {name: values.clone() for name, values in case.model.state_dict().items()}
    network = int8_network(case.model, [images[:32], images[32:]])
    if network is None:
        pytest.skip("this PyTorch has no 8-bit kernels for this processor")
    with torch.no_grad():
        expected, found = case.model(images), network(images)
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.9
    assert float((found - expected).abs().max()) <= 0.1 * float(expected.abs().max())
    assert all(torch.equal(case.model.state_dict()[name], values) for name, values in before.items())


def test_calibration_is_not_run_in_training_mode(case: Case, images: Tensor) -> None:
    trained = Small().train()
    trained.load_state_dict(case.model.state_dict())
    if int8_network(trained, [images]) is None:
        pytest.skip("this PyTorch has no 8-bit kernels for this processor")
    assert trained.training
    assert torch.equal(trained.norm1.running_mean, case.model.norm1.running_mean)
