from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from haq.data import IGNORED, ImageData, Samples
from haq.errors import DataError, HaqError, ModelError
from haq.models.data_fit import check_fit

RNG = np.random.default_rng(0)


class Net(nn.Module):
    """Embeds tokens and gives a score for each class at each position, which a function may change."""

    def __init__(self, change: Callable[[Tensor], object] = lambda y: y, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head, self.change = nn.Embedding(20, 8), nn.Linear(8, classes), change

    def forward(self, x: Tensor) -> object:
        return self.change(self.head(self.embedding(x)))


def tokens(length: int = 6, top: int = 20, columns: int | None = None) -> Samples:
    x = RNG.integers(0, top, (24, columns or length))
    return Samples(x, np.where(RNG.random((24, length)) < 0.2, IGNORED, RNG.integers(0, 4, (24, length))))


def data(train: Samples, test: Samples | None = None) -> ImageData:
    return ImageData("tokens", train, train, test or train, 4)


def one_label(samples: Samples) -> Samples:
    return Samples(samples.x, samples.y.max(1).clip(0))


def refusal(model: nn.Module, given: ImageData, kind: type[HaqError] = DataError) -> str:
    with pytest.raises(kind) as error:
        check_fit(model, given)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_fits() -> None:
    check_fit(Net(), data(tokens()))
    check_fit(Net(classes=9), data(tokens()))
    check_fit(Net(lambda y: y.mean(1)), data(one_label(tokens())))
    check_fit(Net(), data(tokens(4)))  # outputs as long as they are wide


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y.transpose(1, 2), "(1, 4, 6) for one sample; it must give (1, 6, 4) or more classes: the model "
            "must give (N, T, classes): return outputs.transpose(1, 2)"),
        (lambda y: y[:, ::2], "(1, 3, 4) for one sample; it must give (1, 6, 4) or more classes: an answer for each"),
        (lambda y: y.mean(1), "(1, 4) for one sample; it must give (1, 6, 4)"),
        (lambda y: y.flatten(0, 1), "(6, 4) for one sample; it must give (1, 6, 4)"),
        (lambda y: y.transpose(0, 1), "(6, 1, 4) for one sample; it must give (1, 6, 4)"),
        (lambda y: y[..., :3], "the data has 4 classes, but the model gives an output of shape (1, 6, 3)"),
        (lambda y: y[..., 0], "(1, 6) for one sample; it must give (1, 6, 4)"),
        (lambda y: y.sum(), "() for one sample; it must give (1, 6, 4)"),
        (lambda y: y[:1], "(1, 6, 4) for 2 samples; it must give (2, 6, 4)"),
        (lambda y: (y, y), "the model gives tuple for one sample"),
        (lambda y: y.long(), "gives torch.int64 outputs; it must give a floating-point score"),
        (lambda y: y / 0, "gives NaN or infinite outputs"),
    ],
)  # fmt: skip
def test_outputs_that_cannot_be_scored(change: Callable[[Tensor], object], message: str) -> None:
    assert message in refusal(Net(change), data(tokens()))


def test_positions_where_one_answer_is_wanted() -> None:
    assert "must give (1, 4) or more classes: an answer for each sample" in refusal(Net(), data(one_label(tokens())))


def test_one_hot_labels() -> None:
    samples = tokens()
    hot = Samples(samples.x, np.eye(4, dtype=np.int64)[samples.y[:, 0].clip(0)])
    found = refusal(Net(lambda y: y.mean(1)), ImageData("hot", hot, hot, hot, 2))
    assert "if y is one-hot, give class indices, y.argmax(1)" in found


def test_classes_before_as_many_positions_are_told_by_the_labels() -> None:
    samples = Samples(x := RNG.integers(0, 4, (24, 4)), x)

    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 5 * nn.functional.one_hot(x, 4).float()

    class Turned(Same):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).transpose(1, 2)

    check_fit(Same(), data(samples))
    assert "fit the labels far better when read as (N, classes, T)" in refusal(Turned(), data(samples))


@pytest.mark.parametrize("length", [6, 40])
@pytest.mark.parametrize(("value", "sample"), [(20, 17), (-1, 5)])
def test_indices_that_an_embedding_lacks(length: int, value: int, sample: int) -> None:
    good, bad = tokens(length), tokens(length)
    bad.x[sample, 2] = value
    for train, test, name in ((good, bad, "test"), (bad, good, "training")):
        found = refusal(Net(), data(train, test))
        low, high = bad.x[sample].min(), bad.x[sample].max()
        assert f"Net fails on a {name} sample with values from {low} to {high}: " in found
        assert "give indices for which its embeddings have rows" in found


def test_every_column_may_have_an_embedding_of_its_own() -> None:
    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large, self.head = nn.Embedding(3, 4), nn.Embedding(50, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.small(x[:, 0]) + self.large(x[:, 1]))
            return y

    x = np.stack([RNG.integers(0, 3, 24), RNG.integers(0, 50, 24)], 1)
    samples = Samples(x, np.arange(24) % 4)
    check_fit(Columns(), data(samples))
    x[7, 0] = 3
    assert "Columns fails on a training sample" in refusal(Columns(), data(samples))


def test_the_type_of_the_samples_is_said() -> None:
    floats = Samples(RNG.random((8, 6), np.float32), tokens().y[:8])
    assert "fails on a sample of shape (1, 6) with float32 values: " in refusal(Net(), data(floats), ModelError)
