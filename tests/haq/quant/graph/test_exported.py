"""Graphs of `torch.export` compute what the network computes, whatever the network does, and say nothing about it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.errors import ModelError
from haq.layers import reachable
from haq.layers.running import same_randomness
from haq.policy import BitPolicy
from haq.quant.calibration import calibrate
from haq.quant.graph import constants, is_layer, module_of, operation, trace_graph
from haq.quant.graph.exported import exported_graph
from haq.quant.preparation import prepare
from tests.haq.networks import REACHED
from tests.haq.quant.graph.networks import Tokens, tokens

pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = (
    "InFunction", "Keywords", "ReadsWeights", "padded", "halves", "dynamic", "encoder", "attention, separate",
    "decoder", "tied", "auxiliary head", "changes its input", "kept features", "noisy", "shared", "double",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_computes_what_the_network_does_for_any_number_of_samples(kind: str) -> None:
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    network = REACHED[kind]().eval()
    x = x.to(next(network.parameters()).dtype)
    network = reachable(network, x[:1])
    graph = exported_graph(network, x[:1], any_batch=True)
    with torch.no_grad():
        for count in (1, 2, 5):
            with same_randomness():
                expected = network(x[:count].clone())
            with same_randomness():
                torch.testing.assert_close(graph(x[:count].clone()), expected)
    called = {node.target for node in graph.graph.nodes if is_layer(module_of(node, graph))}
    assert all(graph.get_submodule(name) is network.get_submodule(name) for name in called), "modules are shared"
    assert called


def test_layers_are_called_by_their_names_and_the_rest_has_plain_names() -> None:
    network = Tokens().eval()
    graph = trace_graph(network, "a test", tokens(2), any_batch=True)
    called = [node.target for node in graph.graph.nodes if is_layer(module_of(node, graph))]
    assert called == ["words", "places", "q", "k", "v", "out", "up", "down", "head"]
    assert {"add", "relu", "layer_norm", "transpose", "flatten"} <= {operation(n, graph) for n in graph.graph.nodes}
    known = {operation(node, graph) for node in constants(graph)}
    assert {"ones", "tril", "sym_size"} <= known, "masks do not depend on the tokens"
    assert not {"relu", "add"} & (known - {operation(n, graph) for n in graph.graph.nodes if n not in constants(graph)})
    assert torch.equal(graph(tokens(7)), network(tokens(7)))
    assert dict(graph.named_parameters())["words.weight"] is network.words.weight


def test_quantized_layers_stay_layers() -> None:
    network = Tokens().eval()
    policy = BitPolicy.uniform(["q", "k", "v", "out", "up", "down", "head"], 4)
    quantized = prepare(network, policy, calibration=calibrate(network, [tokens(8)], [4])).eval()
    graph = trace_graph(quantized, "a test", tokens(2), any_batch=True)
    assert torch.equal(graph(tokens(8)), quantized(tokens(8)))
    graph(tokens(8)).sum().backward()
    assert quantized.get_submodule("up").weight.grad is not None, "gradients flow, for AdaRound"


class Nested(nn.Module):
    """Reads a dictionary and gives a dictionary; one layer runs twice, once with a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.ConvTranspose2d(4, 2, 2, stride=2)

    def forward(self, batch: dict[str, Any], scale: Tensor) -> dict[str, Any]:
        x = self.layer(input=F.relu(self.layer(batch["x"]))) * scale
        for _ in range(batch["x"].shape[1]):
            x = x + batch["more"][0][:, None]
        return {"mean": x.mean(1), "rest": (x, [x.flatten(1)])}


def test_inputs_and_outputs_may_be_nested() -> None:
    def sample(count: int) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(count)
        x, more = torch.randn(count, 3, 4, generator=rng), torch.randn(count, 4, generator=rng)
        return {"x": x, "more": [more]}, torch.tensor(2.0)

    network = Nested().eval()
    graph = trace_graph(network, "a test", sample(2), any_batch=True)
    torch.testing.assert_close(graph(*sample(5)), network(*sample(5)))
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["layer", "layer"]


class WithSizes(nn.Module):
    """Gives a layer sizes, and layers of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.volume = nn.Conv1d(2, 3, 3), nn.Conv3d(1, 2, 2)
        self.memory, self.head = nn.GRU(3, 4, 2, bidirectional=True, batch_first=True), nn.Linear(8, 2)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[-1] - 9):
            x = x + 1
        x = self.norm(self.audio(x))
        volume = self.volume(x.unsqueeze(1).unsqueeze(-1).expand(-1, -1, -1, -1, 2))
        x, _ = self.memory(x.transpose(1, 2))
        y: Tensor = self.head(x[:, -1]) + volume.mean((1, 2, 3, 4))[:, None]
        return y


def test_recurrent_layers_sound_and_volumes() -> None:
    network, x = WithSizes().eval(), torch.randn(5, 2, 10)
    graph = trace_graph(network, "a test", x[:2], any_batch=True)
    torch.testing.assert_close(graph(x), network(x))


class TooMany(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(5 * x.shape[1] + 1):
            x = self.layer(x)
        return x


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.layer(row) for row in x]
        return torch.stack(rows)


class OnNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.detach().numpy().max())


class OnItem(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.max().item() if x.max().item() > 0 else -x


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (TooMany, "it calls its layers more than 10 times, the last one 'layer'"),
        (FixedBatch, "its graph "),
        (OnNumpy, "numpy"),
        (OnItem, "it decides by the values of a tensor"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_one_line(
    make: Callable[[], nn.Module], reason: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haq.quant.graph.whole_modules._MOST_CALLS", 10)
    with pytest.raises(ModelError, match=rf"a test needs the graph of {make.__name__}, .*{reason}") as error:
        trace_graph(make().eval(), "a test", torch.randn(2, 2), any_batch=True)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", ""), "PyTorch prints the graph that it had"


def test_a_graph_for_one_number_of_samples_may_have_it_built_in() -> None:
    network, x = FixedBatch().eval(), torch.randn(3, 2)
    assert torch.equal(trace_graph(network, "a test", x)(x), network(x))


def test_tracing_leaves_nothing_behind(capfd: pytest.CaptureFixture[str]) -> None:
    network, disabled, filters = Tokens(), logging.root.manager.disable, list(warnings.filters)
    network.train()
    held = {name: dict(vars(module)) for name, module in network.named_modules()}
    state = torch.get_rng_state()
    trace_graph(network, "a test", tokens(2), any_batch=True)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)
    assert (logging.root.manager.disable, list(warnings.filters)) == (disabled, filters)
    assert {name: dict(vars(module)) for name, module in network.named_modules()} == held
