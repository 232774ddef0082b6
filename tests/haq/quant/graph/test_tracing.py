import pytest
import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers import reachable
from haq.quant.graph import is_layer, module_of, trace_graph


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
    with pytest.raises(ModelError, match="it decides by the values of a tensor; keep Python control flow"):
        trace_graph(OnValues(), "a test", torch.ones(1, 1))
    with pytest.raises(ModelError, match="symbolically traced variables cannot be used as inputs to control flow"):
        trace_graph(OnValues(), "a test")


class OfTwo(nn.Module):
    """Asks for the shape of its second input."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x if y.shape[1] == 2 else y


def test_conditions_may_be_on_the_shape_of_any_input() -> None:
    x, y = torch.zeros(1, 3), torch.ones(1, 2)
    assert torch.equal(trace_graph(OfTwo(), "a test", (x, y))(x, y), x)


def test_layers_inside_modules_of_pytorch_are_in_the_graph() -> None:
    x = torch.randn(2, 3, 4)
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    network = reachable(nn.Sequential(encoder, nn.Linear(4, 2)).eval(), x)
    graph = trace_graph(network, "a test", x, any_batch=True)
    called = [node.target for node in graph.graph.nodes if is_layer(module_of(node, graph))]
    assert called == [*(f"0.self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "0.linear1", "0.linear2", "1"]
    torch.testing.assert_close(graph(torch.cat([x, x])), network(torch.cat([x, x])))
