from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from haq.data import Images
from haq.errors import ConfigError
from haq.layers import quantizable_layers
from haq.policy import BitPolicy
from haq.quant.calibration import calibrate
from haq.quant.divergence import Reference
from haq.quant.evaluation import logits_of
from haq.quant.qat import Lessons
from haq.quant.schemes import get_scheme
from haq.search import finals
from haq.search.workload import Workload

rng = np.random.default_rng(0)
SAMPLES = Images(rng.integers(0, 256, (96, 8, 8, 1), np.uint8), rng.integers(0, 4, 96), (0.5,), (0.3,))


@pytest.fixture
def workload(monkeypatch: pytest.MonkeyPatch) -> Workload:
    monkeypatch.setattr(finals, "only_here", lambda gpus=0.0: True)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)
    ).eval()
    calibration = calibrate(model, [SAMPLES.batch(range(96))[0]], [2, 3, 8])
    reference = Reference(SAMPLES, logits_of(model, SAMPLES))
    return Workload(
        model,
        get_scheme("linear"),
        calibration,
        Lessons(SAMPLES, model, 0),
        SAMPLES,
        reference,
        ("sequential",),
        "kl",
        0,
    )


def outputs(model: nn.Module) -> torch.Tensor:
    return logits_of(model, SAMPLES)


def policies(workload: Workload) -> dict[str, BitPolicy]:
    names = [name for name, _ in quantizable_layers(workload.model)]
    return {f"{width} bits": BitPolicy.uniform(names, width) for width in (2, 3)}


def test_rounding_policies_together_equals_rounding_each_alone(workload: Workload) -> None:
    reports: list[tuple[int, int]] = []
    chosen = policies(workload)
    together = finals.finetune_all(workload, chosen, 0, lambda *part: reports.append(part))
    assert reports[-1][0] == reports[-1][1]
    assert [*together] == [*chosen]
    for name, policy in chosen.items():
        alone, found = workload.reconstructed(policy), together[name].network(workload)
        torch.testing.assert_close(outputs(found), outputs(alone), rtol=1e-3, atol=1e-4)
        plain = workload.score(workload.quantized(policy), "ptq")
        assert together[name].score.kl < plain.kl


def test_a_policy_that_fails_is_left_out(workload: Workload) -> None:
    lost: dict[str, Exception] = {}
    chosen = policies(workload)
    names = [name for name, _ in quantizable_layers(workload.model)]
    chosen["5 bits"] = BitPolicy.uniform(names, 5)  # which is not calibrated
    found = finals.finetune_all(workload, chosen, 0, lambda *_: None, on_loss=lost.__setitem__)
    assert [*found] == ["2 bits", "3 bits"]
    assert isinstance(lost["5 bits"], ConfigError)
    with pytest.raises(ConfigError, match="5 bits are not calibrated"):
        finals.finetune_all(workload, chosen, 0, lambda *_: None)


def test_without_passes_nothing_is_rounded_again(workload: Workload) -> None:
    chosen = policies(workload)
    found = finals.finetune_all(replace(workload, passes=()), chosen, 0, lambda *_: None)
    for name, policy in chosen.items():
        assert torch.equal(outputs(found[name].network(workload)), outputs(workload.quantized(policy)))


def test_networks_are_tested_in_order(workload: Workload) -> None:
    reports: list[tuple[int, int]] = []
    networks = {"float": workload.model, "8 bits": workload.quantized(next(iter(policies(workload).values())))}
    top1 = finals.test_all(networks, workload.val, lambda *part: reports.append(part))
    assert [*top1] == ["float", "8 bits"]
    assert reports == [(1, 2), (2, 2)]
    assert top1["float"] == workload.score(workload.model, "float").top1


@pytest.mark.parametrize("right", [True, False])
def test_fine_tuning_that_makes_it_worse_is_undone(workload: Workload, right: bool) -> None:
    class Wrong(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = workload.model(x).roll(1, dims=1)
            return y

    taught = workload if right else replace(workload, lessons=Lessons(SAMPLES, Wrong(), 0))
    policy = policies(workload)["2 bits"]
    *reports, found = finals._finetune(taught, policy, 240)
    assert isinstance(found, finals.Finalist)
    assert reports == sorted(reports)
    rounded = workload.reconstructed(policy)
    if right:
        assert (found.score.fidelity, found.score.steps) == ("qat", 240)
        assert found.score.kl < workload.score(rounded, "ptq").kl
    else:
        assert (found.score.fidelity, found.score.steps) == ("ptq", 0)
        torch.testing.assert_close(outputs(found.network(workload)), outputs(rounded), rtol=1e-3, atol=1e-4)
