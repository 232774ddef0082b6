from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers import reachable


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / 3)


class Holder(nn.Module):
    """Holds parameters, and computes with them in some way."""

    def __init__(self, compute: Callable[[Any, Tensor], Tensor], **held: Any) -> None:
        super().__init__()
        for name, value in held.items():
            setattr(self, name, value)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


ROW, SIGNAL, SQUARE = (1, 8), (1, 8, 12), (1, 4)
Case = tuple[Callable[[Any, Tensor], Tensor], dict[str, Any], tuple[int, ...], dict[str, str]]

CASES: dict[str, Case] = {
    "linear": (
        lambda m, x: F.linear(x, m.w, m.b), {"w": parameter(4, 8), "b": parameter(4)}, ROW, {"w": "Linear"}
    ),
    "by keywords": (lambda m, x: F.linear(x, weight=m.w), {"w": parameter(4, 8)}, ROW, {"w": "Linear"}),
    "transposed": (lambda m, x: F.linear(x, m.w.t()), {"w": parameter(8, 4)}, ROW, {"w": "Linear"}),
    "matrix": (lambda m, x: x @ m.w, {"w": parameter(8, 4)}, ROW, {"w": "Linear"}),
    "transposed matrix": (lambda m, x: x @ m.w.T, {"w": parameter(4, 8)}, ROW, {"w": "Linear"}),
    "square": (lambda m, x: x @ m.w, {"w": parameter(4, 4)}, SQUARE, {"w": "Linear"}),
    "transposed square": (lambda m, x: x.mm(m.w.transpose(0, 1)), {"w": parameter(4, 4)}, SQUARE, {"w": "Linear"}),
    "twice": (lambda m, x: (x @ m.w).tanh() @ m.w, {"w": parameter(4, 4)}, SQUARE, {"w": "Linear"}),
    "with a sum": (
        lambda m, x: torch.addmm(m.b, x, m.w), {"w": parameter(8, 4), "b": parameter(4)}, ROW, {"w": "Linear"}
    ),
    "list": (
        lambda m, x: F.linear(F.linear(x, m.ws[0]), m.ws[1]),
        {"ws": nn.ParameterList([parameter(8, 8), parameter(4, 8)])}, ROW, {"ws.0": "Linear", "ws.1": "Linear"},
    ),
    "conv1d": (
        lambda m, x: F.conv1d(x, m.w, m.b, stride=2, padding=1), {"w": parameter(4, 8, 3), "b": parameter(4)}, SIGNAL,
        {"w": "Conv1d"},
    ),
    "same": (lambda m, x: F.conv1d(x, m.w, padding="same"), {"w": parameter(4, 8, 3)}, SIGNAL, {"w": "Conv1d"}),
    "groups": (
        lambda m, x: F.conv2d(x, m.w, m.b, 1, [1, 1], groups=2), {"w": parameter(4, 4, 3, 3), "b": parameter(4)},
        (1, 8, 6, 6), {"w": "Conv2d"},
    ),
    "conv3d": (lambda m, x: F.conv3d(x, m.w), {"w": parameter(4, 2, 3, 3, 3)}, (1, 2, 5, 5, 5), {"w": "Conv3d"}),
    "transposed convolution": (
        lambda m, x: F.conv_transpose1d(x, m.w, m.b, stride=2, output_padding=1, groups=2),
        {"w": parameter(8, 2, 3), "b": parameter(4)}, SIGNAL, {"w": "ConvTranspose1d"},
    ),
    "lookup": (
        lambda m, x: F.embedding((x * 3).long().abs(), m.w), {"w": parameter(20, 4)}, ROW, {"w": "Embedding"}
    ),
    "index": (lambda m, x: m.w[(x * 3).long().abs()], {"w": parameter(20, 4)}, ROW, {"w": "Embedding"}),
    "beside others": (
        lambda m, x: F.linear(x + m.pos[:, 0], m.w), {"w": parameter(4, 8), "pos": parameter(1, 2, 8)}, ROW,
        {"w": "Linear"},
    ),
    "in two ways": (lambda m, x: x @ m.w @ m.w.t(), {"w": parameter(4, 4)}, SQUARE, {}),
    "two strides": (
        lambda m, x: F.conv1d(x, m.w, stride=2).mean(2) + F.conv1d(x, m.w).mean(2), {"w": parameter(4, 8, 3)}, SIGNAL,
        {},
    ),
    "computed": (lambda m, x: x @ F.normalize(m.w), {"w": parameter(8, 4)}, ROW, {}),
    "added": (
        lambda m, x: F.linear(x, m.w + m.a @ m.b), {"w": parameter(4, 8), "a": parameter(4, 2), "b": parameter(2, 8)},
        ROW, {},
    ),
    "einsum": (lambda m, x: torch.einsum("ni,io->no", x, m.w), {"w": parameter(8, 4)}, ROW, {}),
}  # fmt: skip
"""Name → what is computed, with which parameters, for which shape, and the layers that are found."""


@pytest.mark.parametrize("name", CASES)
def test_a_parameter_that_is_used_in_one_product_is_a_layer(name: str) -> None:
    compute, held, shape, expected = CASES[name]
    network, x = Holder(compute, **held), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    opened = reachable(network, x)
    found = {path: type(module).__name__ for path, module in opened.named_modules() if not list(module.children())}
    assert {path: kind for path, kind in found.items() if path} == expected
    y = network(x)
    torch.testing.assert_close(opened(x), y, rtol=1e-4, atol=1e-5)
    assert (opened is network) == (not expected)
    assert reachable(opened, x) is opened
    if not expected:
        return
    calls: list[str] = []
    for path in expected:
        opened.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path))
    opened(x).sum().backward()
    assert set(calls) == set(expected)
    assert all(weight.grad is not None for weight in opened.get_submodule(path).parameters())
    torch.testing.assert_close(copy.deepcopy(opened)(x), opened(x))


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = parameter(4, 8), parameter(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w) @ self.v


def test_states_of_before_load_and_copies_travel() -> None:
    network, x = nn.Sequential(Part(), Part()), torch.randn(2, 8)
    y, state = network(x), copy.deepcopy(network.state_dict())
    opened = reachable(network, x)
    again = reachable(network)
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in opened.named_parameters()]
    for parameter_ in again.parameters():
        nn.init.zeros_(parameter_)
    again.load_state_dict(state)
    for other in (opened, again, pickle.loads(pickle.dumps(opened))):
        torch.testing.assert_close(other(x), y, rtol=1e-4, atol=1e-5)


def test_what_the_sample_did_not_show_is_computed_as_before() -> None:
    network = Holder(lambda m, x: x @ (m.w if x.sum() > 0 else m.w.t()), w=parameter(4, 4))
    opened = reachable(network, torch.ones(1, 4))
    assert opened is not network
    for x in (torch.ones(1, 4), -torch.ones(1, 4)):
        torch.testing.assert_close(opened(x), network(x))
