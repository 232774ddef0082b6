import numpy as np
import pytest
import torch
from torch import nn

from haq.data import Images, Tokens
from haq.quant.qat import Lessons

CPU = torch.device("cpu")


def pictures(count: int) -> Images:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return Images(x, np.arange(count), (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)).eval()


def test_every_sample_is_seen_before_any_is_seen_again() -> None:
    lessons = Lessons(pictures(23), None, 0, batch=5)
    assert lessons.epoch == 4
    for epoch in range(3):
        seen = torch.cat([lessons.at(4 * epoch + step, CPU)[1] for step in range(4)])
        assert len(seen.unique()) == 20
    orders = [lessons.at(step, CPU)[1].tolist() for step in (0, 4)]
    assert orders[0] != orders[1]


def test_a_lesson_depends_on_its_number_alone() -> None:
    lessons, other = (Lessons(pictures(40), network(), 3, batch=8) for _ in range(2))
    asked = [7, 0, 12, 7]
    for step, (x, target) in zip(asked, [lessons.at(step, CPU) for step in asked], strict=True):
        again, answer = other.at(step, CPU)
        assert torch.equal(x, again)
        assert torch.equal(target, answer)
    assert not torch.equal(lessons.at(0, CPU)[0], Lessons(pictures(40), network(), 4, batch=8).at(0, CPU)[0])


@pytest.mark.parametrize("steps", [0, 3, 40])
def test_prepared_lessons_are_the_same(steps: int) -> None:
    reports: list[float] = []
    lessons = Lessons(pictures(40), network(), 3, batch=8)
    prepared = lessons.prepared(steps, reports.append)
    assert not steps or reports[-1] == 1.0
    for step in (0, 2, 3, 41):
        for one, two in zip(lessons.at(step, CPU), prepared.at(step, CPU), strict=True):
            torch.testing.assert_close(one, two)


def test_answers_that_take_much_memory_are_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    lessons = Lessons(pictures(40), network(), 3, batch=8)
    monkeypatch.setattr("haq.quant.qat.lessons._KEPT_BYTES", 8 * 5 * 4 * 6)
    assert lessons.prepared(6) is not lessons
    assert lessons.prepared(7) is lessons


def test_mixed_samples_have_the_answers_to_what_is_shown() -> None:
    model, images = network(), pictures(40)
    x, target = Lessons(images, model, 0, batch=40).at(0, CPU)
    with torch.no_grad():
        assert torch.equal(target, model(x).log_softmax(1))
    plain = Lessons(images, None, 0, batch=40).at(0, CPU)
    assert torch.equal(plain[0], images.batch(plain[1].numpy())[0]), "samples with labels are not mixed"
    assert not torch.isin(x[:, 0, 0, 0], plain[0][:, 0, 0, 0]).any()


def test_tokens_are_not_mixed() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(self.embedding(x))
            return y

    tokens = np.random.default_rng(0).integers(0, 7, (12, 9))
    x, target = Lessons(Tokens(tokens, tokens), Words(), 0).at(0, CPU)
    assert sorted(x.tolist()) == sorted(tokens.tolist())
    assert target.shape == (12 * 9, 7)


def test_of_texts_no_more_are_answered_at_once_than_fit_into_a_batch() -> None:
    sizes: list[int] = []

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.numel())
            y: torch.Tensor = self.head(self.embedding(x))
            return y

    tokens = np.random.default_rng(0).integers(0, 7, (40, 512))
    model = Words()
    assert Lessons(Tokens(tokens, tokens), model, 0).agreement(model) == 1.0
    assert max(sizes) <= 1024


def test_agreement_is_the_share_of_equal_answers() -> None:
    model, images = network(), pictures(40)
    assert Lessons(images, None, 0).agreement(model) is None
    assert Lessons(images, model, 0).agreement(model) == 1.0

    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = model(x)
            wrong = torch.arange(len(y)) % 2 == 0
            return torch.where(wrong[:, None], y.roll(1, 1), y)

    assert Lessons(images, model, 0).agreement(Half()) == 0.5
    assert Lessons(images, model, 0).prepared(1).agreement(Half()) == 0.5
