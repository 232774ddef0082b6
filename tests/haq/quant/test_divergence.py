import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from haq.data import IGNORED, Images, Samples, Tokens
from haq.errors import ModelError
from haq.quant.divergence import Reference, mixed
from haq.quant.evaluation import evaluate, logits_of


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)).eval()


def pictures(count: int, seed: int = 0) -> Images:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return Images(x, rng.integers(0, 5, count), (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))


@pytest.mark.parametrize("threads", [1, 2])
def test_divergence_is_that_of_the_probabilities(threads: int) -> None:
    images, exact, other = pictures(70), network(0), network(1)
    found = Reference(images, logits_of(exact, images)).divergence(other, threads)
    x = images.batch(range(70))[0]
    with torch.no_grad():
        p, q = exact(x).log_softmax(1), other(x).log_softmax(1)
    assert found == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-5)
    assert Reference(images, logits_of(exact, images)).divergence(exact) == 0


def test_divergence_of_a_language_model_is_a_mean_over_positions() -> None:
    class Words(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.embedding, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.embedding(x))

    tokens = np.random.default_rng(0).integers(0, 7, (12, 9))
    texts = Tokens(tokens, tokens)
    exact, other = Words(0), Words(1)
    p, q = (logits_of(model, texts).flatten(0, 1).log_softmax(1) for model in (exact, other))
    found = Reference(texts, logits_of(exact, texts)).divergence(other)
    assert found == pytest.approx(float(F.kl_div(q, p, reduction="batchmean", log_target=True)), rel=1e-5)


class Positions(nn.Module):
    """Gives a score for each class at each position, of floats or of tokens."""

    def __init__(self, seed: int, tokens: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first: nn.Module = nn.Embedding(7, 6) if tokens else nn.Linear(3, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.first(x).relu())
        return y


def padded(tokens: bool = True) -> Samples:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 7, (60, 9)) if tokens else rng.standard_normal((60, 9, 3)).astype(np.float32)
    y = rng.integers(0, 4, (60, 9))
    y[np.arange(9) >= rng.integers(1, 10, 60)[:, None]] = IGNORED
    return Samples(x, y)


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_positions_without_a_label_do_not_count(tokens: bool, threads: int) -> None:
    samples, exact, other = padded(tokens), Positions(0, tokens), Positions(1, tokens)
    there = torch.from_numpy(samples.y != IGNORED)
    labels = torch.from_numpy(samples.y)[there]
    with torch.no_grad():
        p, q = (model(torch.from_numpy(samples.x))[there].log_softmax(-1) for model in (exact, other))
    score = evaluate(other, samples, "float", threads=threads)
    assert score.samples == samples.answers == int(there.sum())
    assert score.top1 == pytest.approx(float((q.argmax(1) == labels).float().mean()))
    assert score.loss == pytest.approx(float(F.nll_loss(q, labels)), rel=1e-5)
    found = Reference(samples, logits_of(exact, samples)).divergence(other, threads)
    assert found == pytest.approx(float(F.kl_div(q, p, reduction="batchmean", log_target=True)), rel=1e-5)


def test_an_index_that_an_embedding_lacks_is_said() -> None:
    samples = padded()
    samples.x[59, 0] = 7
    with pytest.raises(
        ModelError, match="Positions fails on inputs with values from 0 to 7: IndexError: index out of range"
    ):
        evaluate(Positions(0), samples, "float", threads=1)


def test_mixed_samples_lie_between_two_others() -> None:
    images = pictures(40)
    x = images.batch(range(40))[0].numpy().reshape(40, -1)
    between = mixed(images, 30, 3).batch(range(30))[0].numpy().reshape(30, -1)
    ends = [(i, j) for i in range(40) for j in range(i)]
    starts, steps = np.array([x[i] for i, _ in ends]), np.array([x[j] - x[i] for i, j in ends])
    for sample in between:
        shares = ((sample - starts) * steps).sum(1) / (steps**2).sum(1)
        off = np.abs(starts + shares[:, None] * steps - sample).max(1)
        assert off.min() < 1e-5
        assert 0 <= shares[off.argmin()] <= 1


def test_mixing_is_repeatable_and_takes_no_more_than_there_is() -> None:
    images = pictures(8)
    first, again, other = mixed(images, 20, 1), mixed(images, 20, 1), mixed(images, 20, 2)
    assert len(first) == 8
    assert np.array_equal(first.x, again.x)
    assert not np.array_equal(first.x, other.x)


def test_one_sample_stays_itself() -> None:
    images = pictures(1)
    np.testing.assert_allclose(mixed(images, 4, 0).x, images.batch([0])[0].numpy(), rtol=1e-6)


def test_whole_numbers_are_not_mixed() -> None:
    tokens = np.arange(60).reshape(10, 6)
    chosen = mixed(Tokens(tokens, tokens), 4, 0)
    assert isinstance(chosen, Tokens)
    assert set(map(tuple, chosen.x)) <= set(map(tuple, tokens))


def test_scores_and_outputs_do_not_depend_on_threads() -> None:
    rng = np.random.default_rng(0)
    samples = Samples(rng.standard_normal((2311, 3, 4, 4)).astype(np.float32), rng.integers(0, 5, 2311))
    model = network(0)
    one, several = (evaluate(model, samples, "float", threads=count) for count in (1, 3))
    assert (one.top1, one.samples) == (several.top1, several.samples)
    assert one.loss == pytest.approx(several.loss)
    torch.testing.assert_close(logits_of(model, samples, 1), logits_of(model, samples, 3))
