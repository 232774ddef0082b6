import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.quant.graph import operation, trace_graph
from haq.quant.graph.exported import exported_graph


class Spellings(nn.Module):
    """Computes the same things in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.relu6, self.flat = nn.ReLU(), nn.ReLU6(), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(F.relu(torch.relu(x.relu())))
        x = F.relu_(x).relu_()
        x = self.relu6(F.relu6(F.hardtanh(x, 0.0, 6.0)))
        x = x + x
        x += 1
        x = torch.add(x, 2).add(3).add_(4)
        x = F.pad(F.hardtanh(x), (1, 1))
        return self.flat(F.dropout(F.max_pool2d(x, 2), 0.1, self.training)).flatten(1)


def test_both_tracers_spell_operations_alike() -> None:
    model, x = Spellings().eval(), torch.randn(2, 3, 4, 4)
    for graph in (trace_graph(model, "a test"), exported_graph(model, x)):
        names = [name for node in graph.graph.nodes if (name := operation(node, graph)) is not None]
        assert names == [
            *["relu"] * 6, *["relu6"] * 3, *["add"] * 5, "hardtanh", "pad", "max_pool2d", "dropout", "flatten",
            "flatten",
        ]  # fmt: skip
