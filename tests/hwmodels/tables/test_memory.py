"""Working memory of small networks, against what a person counts."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from haq.hwmodels.liveness import plan_memory
from haq.hwmodels.tables.memory import MemoryPlan
from haq.models.registry import get_model
from tests.haq.quant.graph.networks import Tokens, tokens


class Residual(nn.Module):
    """Two convolutions of 4 channels on 8×8 pixels around a shortcut, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        result: Tensor = self.last(x.flatten(1))
        return result


NAMES = ("first", "second", "last")
PLAN = plan_memory(Residual(), torch.zeros(1, 2, 8, 8))


def peak(plan: MemoryPlan, *a_bits: int, buffers: tuple[float, ...] = (0, 0, 0), batch: int = 1) -> float:
    return float(plan.peaks(NAMES, np.array([a_bits]), np.array([buffers]), batch)[0])


def test_peak_is_counted_by_hand():
    # While `second` runs, its input (kept at 8 bits for the addition) and its output live: 256 + 256 bytes at 8 bits.
    assert peak(PLAN, 8, 8, 8) == 512
    # The sum takes over the output's place, so its only reader, `last`, decides its width
    assert peak(PLAN, 8, 8, 4) == 256 + 256  # but the addition writes at 8 bits at least
    # The input is alive only in `first`: 128 values at a width of its own
    assert peak(PLAN, 8, 2, 2, buffers=(1000, 0, 0)) == 128 + 256 + 1000
    assert peak(PLAN, 1, 2, 2, buffers=(1000, 0, 0)) == 16 + 256 + 1000
    assert peak(PLAN, 0, 8, 8, buffers=(1000, 0, 0)) == 512 + 256 + 1000  # 0 is floating point
    assert peak(PLAN, 8, 8, 8, batch=3) == 3 * 512


def test_a_chain_keeps_input_and_output_only():
    chain = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    plan = plan_memory(chain, torch.zeros(1, 1, 4, 4))
    peaks = plan.peaks(("0", "2", "4"), np.array([[8, 4, 2]]), np.zeros((1, 3)), 1)
    assert peaks[0] == 16 * 8 * 4 / 8 + max(16 * 1 * 8 / 8, 16 * 2 * 2 / 8)


@given(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=3, max_size=3), st.integers(0, 2))
def test_a_wider_activation_never_needs_less(a_bits: list[int], layer: int):
    wider = [8 if index == layer else bits for index, bits in enumerate(a_bits)]
    assert peak(PLAN, *wider) >= peak(PLAN, *a_bits)


def test_plans_round_trip():
    assert MemoryPlan.from_dict(PLAN.to_dict()) == PLAN


def test_mobilenet_v2_peak_is_the_published_one():
    """The first expanded tensor and what a stride of 2 leaves of it (Sandler et al. 2018, table 2), in 8 bits."""
    plan = plan_memory(get_model("mobilenet-v2"), torch.zeros(1, 3, 224, 224))
    layers = tuple(dict.fromkeys(name for buffer in plan.buffers for name in buffer.readers))
    peaks = plan.peaks(layers, np.full((1, len(layers)), 8), np.zeros((1, len(layers))), 1)
    assert peaks[0] == 112 * 112 * 96 + 56 * 56 * 96


class Counting(Residual):
    """The same, with a loop that `torch.fx` cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[-1] // x.shape[-1]):
            y = super().forward(x)
        return y


def test_both_tracers_give_the_same_plan():
    assert plan_memory(Counting(), torch.zeros(1, 2, 8, 8)) == PLAN


def test_tokens_are_counted_without_masks_positions_and_tables():
    plan = plan_memory(Tokens(), tokens(1, 6))
    assert [step.layer for step in plan.steps if step.layer] == [
        "words",
        "q",
        "k",
        "v",
        "out",
        "up",
        "down",
        "head",
    ]
    assert max(buffer.elements for buffer in plan.buffers) == 6 * 16, "the widest layer, not the embeddings of 20 × 8"
    up = next(step for step in plan.steps if step.layer == "up")
    assert sorted(plan.buffers[index].elements for index in up.alive) == [6 * 8, 6 * 16], "x stays for the shortcut"


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.memory(x.exp())[0])
        return y


def test_what_a_recurrent_layer_reads_lives_while_it_runs():
    plan = plan_memory(Recurrent(), torch.zeros(1, 5, 3))
    alive = [sorted(plan.buffers[index].elements for index in step.alive) for step in plan.steps]
    assert alive == [[5 * 3, 5 * 3], [5 * 3, 5 * 4], [5 * 2, 5 * 4]]
