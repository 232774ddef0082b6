import numpy as np
import pytest
import torch
from torch import nn

from haq.data import IGNORED, Images, Samples, Tokens
from haq.quant.qat import Finetuning, Lessons

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
    for step, lesson in zip(asked, [lessons.at(step, CPU) for step in asked], strict=True):
        for one, two in zip(lesson, other.at(step, CPU), strict=True):
            torch.testing.assert_close(one, two, atol=0, rtol=0)
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
    x, _, taught = Lessons(images, model, 0, batch=40).at(0, CPU)
    with torch.no_grad():
        assert taught is not None
        assert torch.equal(taught, model(x).log_softmax(1))
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
    x, _, taught = Lessons(Tokens(tokens, tokens), Words(), 0).at(0, CPU)
    assert sorted(x.tolist()) == sorted(tokens.tolist())
    assert taught is not None
    assert taught.shape == (12 * 9, 7)


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


@pytest.mark.parametrize("taught", [True, False])
def test_nothing_is_learnt_where_there_is_no_label(taught: bool) -> None:
    class Bias(nn.Module):
        """Scores of a position depend on its own parameters alone, so that gradients tell which positions count."""

        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.bias = nn.Parameter(torch.randn(6, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bias * x[:, :, None]

    x, y = np.random.default_rng(0).random((12, 6), np.float32), np.ones((12, 6), np.int64)
    y[:, 4:] = IGNORED
    y[3, 2:] = IGNORED
    teacher, student = Bias(0) if taught else None, Bias(1)
    lessons = Lessons(Samples(x, y), teacher, 0).prepared(1)
    if teacher is not None:
        answers = [model(torch.from_numpy(x)).argmax(-1) for model in (teacher, student)]
        agreed = (answers[0] == answers[1])[torch.from_numpy(y) != IGNORED]
        assert lessons.agreement(student) == pytest.approx(float(agreed.float().mean()))
    before = student.bias.detach().clone()
    shown, labels, _ = lessons.at(0, CPU)
    with torch.no_grad():
        log_q = student(shown).log_softmax(-1)[labels != IGNORED]
        log_p = teacher(shown).log_softmax(-1)[labels != IGNORED] if teacher is not None else None
    expected = -log_q[:, 1].mean() if log_p is None else (log_p.exp() * (log_p - log_q)).sum(1).mean()
    assert Finetuning(student, lessons, 2).run(1) == pytest.approx(float(expected), rel=1e-5)
    moved = (student.bias.detach() != before).any(1)
    assert moved.tolist() == [True] * 4 + [False] * 2
