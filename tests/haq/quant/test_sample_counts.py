"""Large networks take fewer samples, by counts alone; small ones take as many as ever."""

from dataclasses import replace

import numpy as np
import pytest

from haq.config import SearchConfig
from haq.data import ImageData, Samples
from haq.layers import LayerSpec
from haq.progress import Silent
from haq.quant.sample_counts import Effort, at_most
from haq.scores import Score
from haq.search.scoring import choose_rank_by

from ...envs.conftest import make_layers

FLOAT = Score(0.7, 0.9, 1000, 0.0, "float")


def data(train: int = 4000, val: int = 1000) -> ImageData:
    def split(count: int) -> Samples:
        return Samples(np.zeros((count, 2), np.float32), np.zeros(count, np.int64))

    return ImageData("blank", split(train), split(val), split(10), 2)


def layers(macs: float) -> list[LayerSpec]:
    first, *others = make_layers(3)
    return [replace(first, macs=int(macs) - sum(layer.macs for layer in others)), *others]


@pytest.mark.parametrize("macs", [41e6, 100e6])
def test_small_networks_take_the_usual_samples(macs: float) -> None:
    effort = Effort.of(layers(macs), data())
    assert replace(effort, macs=0) == Effort()
    assert str(effort) == ""
    assert effort.prepares(24)
    assert not effort.few_labels


def test_a_large_network_takes_fewer_and_says_so() -> None:
    effort = Effort.of(layers(10.9e9), data())
    assert 16 <= effort.calibration < 128
    assert 16 <= effort.sensitivity < 64
    assert effort.lesson == 8
    assert not effort.prepares(24)
    for words in ("10.9 G multiplications", f"calibrating on {effort.calibration} of 512 samples", "sensitivities on"):
        assert words in str(effort)


def test_a_step_takes_at_most_as_long_as_it_may() -> None:
    for macs in (1e9, 4e9, 30e9):
        effort = Effort.of(layers(macs), data())
        assert effort.calibration * macs <= 20 * 40e9
        assert effort.sensitivity * macs * 5 <= max(40 * 40e9, 16 * macs * 5)


def test_what_data_does_not_have_is_not_said_to_be_left_out() -> None:
    effort = Effort.of(layers(4.1e9), data(train=20, val=20))
    assert "calibrating" not in str(effort)
    assert "scoring" not in str(effort)


def test_few_labels_rank_nothing() -> None:
    config = SearchConfig(("latency=50%",))
    assert choose_rank_by(config, data(), FLOAT, Silent(), tuned=True, few_labels=True) == "kl"
    assert choose_rank_by(config, data(), FLOAT, Silent(), tuned=True) == "top1"
    assert choose_rank_by(replace(config, rank_by="top1"), data(), FLOAT, Silent(), True, few_labels=True) == "top1"


def test_the_first_samples_are_taken() -> None:
    samples = data().train
    assert at_most(samples, None) is samples
    assert at_most(samples, 4000) is samples
    assert len(at_most(samples, 7)) == 7
