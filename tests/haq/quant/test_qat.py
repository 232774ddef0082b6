import numpy as np
import torch
from torch import nn

from haq.data import Images, get_data
from haq.layers import quantizable_layers
from haq.models.resnet import SmallResNet
from haq.policy import BitPolicy
from haq.quant.calibration import calibrate
from haq.quant.evaluation import evaluate, logits_of
from haq.quant.folding import fold_batch_norm
from haq.quant.preparation import prepare
from haq.quant.qat import Finetuning


def workload() -> tuple[nn.Module, nn.Module, Images]:
    torch.manual_seed(0)
    images = get_data("digits", 1000, seed=0).train.subset(np.arange(256))
    model = fold_batch_norm(SmallResNet((8,), (1,), (1,), 10, 1).eval(), images.batch([0])[0])
    policy = BitPolicy.uniform([name for name, _ in quantizable_layers(model)], 2)
    return model, prepare(model, policy, calibrate(model, [images.batch(range(64))[0]], [2])), images


def test_finetuning_comes_closer_to_the_float_network() -> None:
    model, quantized, images = workload()
    teacher = logits_of(model, images)
    before = (logits_of(quantized, images) - teacher).square().mean()
    Finetuning(quantized, images, teacher, steps=40, seed=0, rate=10).run(40)
    assert (logits_of(quantized, images) - teacher).square().mean() < 0.8 * before


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


def test_evaluate_counts_all_images() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 10).index_fill(1, torch.tensor([3]), 1.0)

    images = get_data("digits", 1000, seed=0).test
    score = evaluate(Constant(), images, "float")
    assert score.top1 == (images.y == 3).mean()
    assert score.samples == len(images)
