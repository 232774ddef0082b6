import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from haq.data import Images, get_data
from haq.errors import ConfigError, ModelError
from haq.layers import quantizable_layers
from haq.models.resnet import SmallResNet
from haq.policy import BitPolicy, LayerBits
from haq.quant.calibration import calibrate
from haq.quant.evaluation import evaluate, logits_of
from haq.quant.folding import fold_batch_norm
from haq.quant.modules import Quantized
from haq.quant.preparation import prepare
from haq.quant.qat import Finetuning, Lessons, finetune
from haq.quant.schemes import get_scheme
from haq.quant.schemes.inq import SCHEDULE


def workload() -> tuple[nn.Module, nn.Module, Images]:
    torch.manual_seed(0)
    images = get_data("digits", 1000, seed=0).train.subset(np.arange(256))
    model = fold_batch_norm(SmallResNet((8,), (1,), (1,), 10, 1).eval(), images.batch([0])[0])
    policy = BitPolicy.uniform([name for name, _ in quantizable_layers(model)], 2)
    calibration = calibrate(model, [images.batch(range(64))[0]], [2], compensated=False)
    return model, prepare(model, policy, calibration=calibration), images


class Rolled(nn.Module):
    """A teacher that is always wrong."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.model(x).roll(1, dims=1)
        return y


def divergence(logits: torch.Tensor, teacher: torch.Tensor) -> float:
    return float(F.kl_div(logits.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True))


def test_finetuning_comes_closer_to_the_float_network() -> None:
    model, quantized, images = workload()
    teacher = logits_of(model, images)
    before = divergence(logits_of(quantized, images), teacher)
    finetune(quantized, images, model, steps=80)
    assert divergence(logits_of(quantized, images), teacher) < 0.8 * before


def test_outputs_are_no_teacher() -> None:
    model, quantized, images = workload()
    with pytest.raises(ConfigError, match="takes the float network as teacher, not a Tensor"):
        finetune(quantized, images, logits_of(model, images), steps=1)  # type: ignore[arg-type]


def test_chunks_are_the_same_as_one_run_and_end_with_the_schedule() -> None:
    model, one, images = workload()
    _, other, _ = workload()
    lessons = Lessons(images, model, 3)
    whole, chunked = Finetuning(one, lessons, 6), Finetuning(other, lessons.prepared(4), 6)
    whole.run(6)
    for _ in range(4):
        chunked.run(2)
    assert chunked.done == 6, "never more than the whole run"
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
    teacher = copy.deepcopy(quantized)
    finetune(quantized, images, Rolled(teacher) if broken else teacher, steps=2)
    kept = torch.equal(before["norm.running_mean"], quantized.norm.running_mean)  # type: ignore[union-attr, arg-type]
    assert kept != broken
    assert not torch.equal(before["norm.weight"], quantized.norm.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(before["linear.weight"], quantized.linear.weight), "dropout of everything would stop this"  # type: ignore[union-attr, arg-type]
    assert not any(module.training for module in quantized.modules())


def test_inq_freezes_its_share_and_ends_in_powers_of_two() -> None:
    images = get_data("digits", 1000, seed=0).train.subset(np.arange(128))
    model = SmallResNet((8,), (1,), (1,), 10, 1).eval()
    quantized = prepare(model, BitPolicy({"conv1": LayerBits(4, None)}, "inq"))
    run = Finetuning(quantized, Lessons(images, model, 0), steps=8)
    layer = quantized.conv1
    assert isinstance(layer, Quantized)
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
        finetune(quantized, images, model, steps=80)
        assert divergence(logits_of(quantized, images), teacher) < 0.8 * before, bits


def test_evaluate_counts_all_images() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 10).index_fill(1, torch.tensor([3]), 1.0)

    images = get_data("digits", 1000, seed=0).test
    score = evaluate(Constant(), images, "float")
    assert score.top1 == (images.y == 3).mean()
    assert score.samples == len(images)


class Random(nn.Module):
    """In training mode it has a second head, and dropout by functions, in attention and in a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, dropout=0.9, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, num_layers=2, dropout=0.9, batch_first=True)
        self.aux, self.last = nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(torch.relu(self.first(x.flatten(1, 2))), 0.9, self.training)
        x = x + self.attention(x, x, x)[0]
        x = self.recurrent(x)[0].mean(1)
        return (self.last(x), self.aux(x)) if self.training else self.last(x)  # type: ignore[return-value]


def test_nothing_drops_and_no_other_head_is_trained() -> None:
    images = get_data("digits", 1000, seed=0).train.subset(np.arange(128))
    results = []
    for seed in (1, 2):
        model = Random().eval()
        quantized = prepare(model, BitPolicy({"first": LayerBits(2, None), "last": LayerBits(2, None)}))
        run = Finetuning(quantized, Lessons(images, model, 0), steps=3)
        torch.manual_seed(seed)
        run.run(3)
        results.append(torch.cat([parameter.detach().flatten() for parameter in quantized.parameters()]))
        assert quantized.recurrent.dropout == 0.9  # type: ignore[union-attr]
        assert not any(module.training for module in quantized.modules())
    assert torch.equal(*results), "no step draws a random number"


def test_a_network_that_changes_its_input_learns_from_the_same_teacher() -> None:
    class Doubling(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.in_place, self.linear = in_place, nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.mul_(2.0) if self.in_place else x * 2.0
            y: torch.Tensor = self.linear(x.flatten(1))
            return y

    images = get_data("digits", 1000, seed=0).train.subset(np.arange(128))
    weights = []
    for in_place in (False, True):
        model = Doubling(in_place).eval()
        quantized = prepare(model, BitPolicy({"linear": LayerBits(2, None)}))
        finetune(quantized, images, model, steps=4)
        weights.append(quantized.linear.weight)
    assert torch.equal(*weights)  # type: ignore[arg-type]


class Normed(nn.Sequential):
    def __init__(self, **options: bool) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4, **options),
            nn.Linear(4, 10),
        )  # fmt: skip


def test_batches_of_one_leave_statistics_that_they_cannot_tell(caplog: pytest.LogCaptureFixture) -> None:
    images = get_data("digits", 1000, seed=0).train.subset(np.arange(128))
    model = Normed().eval()
    quantized = prepare(model, BitPolicy({"0": LayerBits(2, None)}))
    finetune(quantized, images, Rolled(model), steps=2, batch=1)
    before, after = dict(model.named_buffers()), dict(quantized.named_buffers())
    assert not torch.equal(before["1.running_mean"], after["1.running_mean"]), "36 positions tell a mean"
    assert torch.equal(before["4.running_mean"], after["4.running_mean"])
    assert "batches of 1 leave the statistics of 1 batch norms unchanged" in caplog.text


def test_a_norm_that_keeps_no_statistics_refuses_batches_of_one() -> None:
    images = get_data("digits", 1000, seed=0).train.subset(np.arange(128))
    model = Normed(track_running_stats=False).eval()
    quantized = prepare(model, BitPolicy({"0": LayerBits(2, None)}))
    with pytest.raises(ModelError, match="batch norm '4' has no running statistics, .*--batch 2 or more"):
        finetune(quantized, images, model, steps=2, batch=1)


def test_norms_that_a_network_holds_back_stay() -> None:
    class Frozen(Normed):
        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode)
            self[1].eval()
            return self

    images = get_data("digits", 1000, seed=0).train.subset(np.arange(128))
    model = Frozen().eval()
    quantized = prepare(model, BitPolicy({"0": LayerBits(2, None)}))
    finetune(quantized, images, Rolled(model), steps=2)
    before, after = dict(model.named_buffers()), dict(quantized.named_buffers())
    assert torch.equal(before["1.running_mean"], after["1.running_mean"])
    assert not torch.equal(before["4.running_mean"], after["4.running_mean"])


@pytest.mark.parametrize("kind", [tuple, dict])
def test_outputs_that_are_no_tensor_are_one_line(kind: type) -> None:
    class Several(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x.flatten(1))
            return (y, y) if kind is tuple else {"logits": y}  # type: ignore[return-value]

    images = get_data("digits", 1000, seed=0).train.subset(np.arange(64))
    for ask in (lambda: evaluate(Several(64, 10), images, "float"), lambda: logits_of(Several(64, 10), images)):
        with pytest.raises(ModelError, match=f"Several returns a {kind.__name__}, and haq does not know which part"):
            ask()
