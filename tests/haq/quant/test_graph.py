import pytest
import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.quant.graph import trace_graph


class Checked(nn.Module):
    """Refuses inputs with another number of channels, like the networks of `transformers`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        if channels != 3 or x.shape[-2:] < (2, 2):
            raise ValueError("wrong shape")
        return self.layer(x)


class OnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x[0, 0] > 0 else -x


def test_conditions_on_shapes_are_decided_by_the_sample() -> None:
    model, x = Checked(), torch.randn(5, 3, 4, 4)
    graph = trace_graph(model, "a test", torch.zeros(1, 3, 8, 8))
    assert torch.equal(graph(x), model(x))
    with pytest.raises(ModelError, match="a test needs the graph of Checked, which cannot be traced"):
        trace_graph(model, "a test")
    with pytest.raises(ModelError, match="wrong shape"):
        trace_graph(model, "a test", torch.zeros(1, 2, 8, 8))


def test_conditions_on_values_are_not() -> None:
    with pytest.raises(ModelError, match="symbolically traced variables cannot be used as inputs to control flow"):
        trace_graph(OnValues(), "a test", torch.ones(1, 1))
