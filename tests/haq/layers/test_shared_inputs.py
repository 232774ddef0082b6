"""Layers that read the same values in memory are found, however the forward pass is written."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from haq.layers import find_shared_inputs


class Reading(nn.Module):
    """Three projections of one tensor; one of a part of it, one after it was changed, and two of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.part, self.changed, self.late = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        y = self.q(x) + self.k(nn.functional.dropout(x, training=self.training))
        y = y + self.v(x.view(1, 2, 3, 4)).view(1, 6, 4)
        y[:, :1] += self.part(x[:, :1])
        x.mul_(2)
        return y + self.changed(x) + self.late(x.clone())


def test_layers_that_read_one_tensor_are_a_group() -> None:
    assert find_shared_inputs(Reading(), torch.randn(1, 6, 4)) == [("q", "k", "v")]


class Twice(nn.Module):
    """A layer that is called twice shares an input with others in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.both = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x) + self.both(x)
        return self.two(y) + self.both(y)


def test_a_layer_of_several_calls_is_in_a_group_for_each() -> None:
    assert find_shared_inputs(Twice(), torch.randn(1, 2, 3, 3)) == [("one", "both"), ("two", "both")]


def test_a_chain_shares_nothing() -> None:
    assert (
        find_shared_inputs(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)), torch.randn(1, 4))
        == []
    )


def test_attention_reads_its_input_three_times() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.q(x), self.k(x), self.v(x)
            result: Tensor = self.out(nn.functional.scaled_dot_product_attention(q, k, v))
            return result

    assert find_shared_inputs(nn.Sequential(Attention(), Attention()), torch.randn(1, 5, 8)) == [
        ("0.q", "0.k", "0.v"), ("1.q", "1.k", "1.v")
    ]  # fmt: skip
