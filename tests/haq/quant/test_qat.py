import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from haq.data import Images, get_data
from haq.layers import quantizable_layers
from haq.models.resnet import SmallResNet
from haq.policy import BitPolicy, LayerBits
from haq.quant.calibration import calibrate
from haq.quant.evaluation import evaluate, logits_of
from haq.quant.folding import fold_batch_norm
from haq.quant.modules import QuantConv2d
from haq.quant.preparation import prepare
from haq.quant.qat import Finetuning, finetune
from haq.quant.schemes import get_scheme
from haq.quant.schemes.inq import SCHEDULE


def workload() -> tuple[nn.Module, nn.Module, Images]:
    torch.manual_seed(0)
    images = get_data("digits", 1000, seed=0).train.subset(np.arange(256))
    model = fold_batch_norm(SmallResNet((8,), (1,), (1,), 10, 1).eval(), images.batch([0])[0])
    policy = BitPolicy.uniform([name for name, _ in quantizable_layers(model)], 2)
    calibration = calibrate(model, [images.batch(range(64))[0]], [2])
    return model, prepare(model, policy, calibration=calibration), images


def divergence(logits: torch.Tensor, teacher: torch.Tensor) -> float:
    return float(F.kl_div(logits.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True))


def test_finetuning_comes_closer_to_the_float_network() -> None:
    model, quantized, images = workload()
    teacher = logits_of(model, images)
    before = divergence(logits_of(quantized, images), teacher)
    finetune(quantized, images, teacher, steps=80)
    assert divergence(logits_of(quantized, images), teacher) < 0.8 * before


def test_chunks_are_the_same_as_one_run_and_end_with_the_schedule() -> None:
    model, one, images = workload()
    _, other, _ = workload()
    teacher = logits_of(model, images)
    whole, chunked = (Finetuning(m, images, teacher, steps=6, seed=3) for m in (one, other))
    whole.run(6)
    for _ in range(4):
        chunked.run(2)
    assert chunked.done == 6, "never past the whole run"
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("broken", [False, True])
def test_batch_norms_follow_a_broken_network_only_and_dropout_stays_off(broken: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.drop, self.linear = nn.Dropout(1.0), nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.linear(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))
            return y

    images = get_data("digits", 1000, seed=0).train.subset(np.arange(128))
    model = Net().eval()
    quantized = prepare(model, BitPolicy({"conv": LayerBits(2, None)}))
    before = {name: value.clone() for name, value in quantized.state_dict().items() if isinstance(value, torch.Tensor)}
    teacher = logits_of(quantized.eval(), images)
    finetune(quantized, images, teacher.roll(1, dims=1) if broken else teacher, steps=2)
    kept = torch.equal(before["norm.running_mean"], quantized.norm.running_mean)  # type: ignore[union-attr, arg-type]
    assert kept != broken
    assert not torch.equal(before["norm.weight"], quantized.norm.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(before["linear.weight"], quantized.linear.weight), "dropout of everything would stop this"  # type: ignore[union-attr, arg-type]
    assert not any(module.training for module in quantized.modules())


def test_inq_freezes_its_share_and_ends_in_powers_of_two() -> None:
    images = get_data("digits", 1000, seed=0).train.subset(np.arange(128))
    model = SmallResNet((8,), (1,), (1,), 10, 1).eval()
    quantized = prepare(model, BitPolicy({"conv1": LayerBits(4, None)}, "inq"))
    run = Finetuning(quantized, images, logits_of(model, images), steps=8, seed=0)
    layer = quantized.conv1
    assert isinstance(layer, QuantConv2d)
    for share in SCHEDULE:
        run.run(2)
        assert float(layer.weight_quantizer.share) == share  # type: ignore[arg-type]
    weight = layer.weight_quantizer(layer.weight).abs()
    exponents = torch.log2(weight[weight > 0])
    assert torch.equal(exponents, exponents.round())


def test_gradients_of_few_bits_still_train() -> None:
    """DoReFa (Zhou et al. 2016, arXiv:1606.06160, eq. 12) at 4 to 8 gradient bits."""
    images = get_data("digits", 1000, seed=0).train.subset(np.arange(256))
    torch.manual_seed(0)
    model = SmallResNet((8,), (1,), (1,), 10, 1).eval()
    teacher = logits_of(model, images)
    calibration = calibrate(model, [images.batch(range(64))[0]], [2], "dorefa")
    policy = BitPolicy.uniform([name for name, _ in quantizable_layers(model)], 2).with_scheme("dorefa")
    for bits in (4, 6, 8):
        quantized = prepare(model, policy, get_scheme("dorefa", gradient_bits=bits), calibration)
        before = divergence(logits_of(quantized, images), teacher)
        finetune(quantized, images, teacher, steps=30)
        assert divergence(logits_of(quantized, images), teacher) < 0.8 * before, bits


def test_evaluate_counts_all_images() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 10).index_fill(1, torch.tensor([3]), 1.0)

    images = get_data("digits", 1000, seed=0).test
    score = evaluate(Constant(), images, "float")
    assert score.top1 == (images.y == 3).mean()
    assert score.samples == len(images)
