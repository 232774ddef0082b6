from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from haq.layers import copied, quantizable_layers, reachable, trace
from haq.torch_internals import tree_leaves

from ...several_weights import Rows

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

MODULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm with projections": (nn.LSTM, {"proj_size": 3}),
    "gru": (nn.GRU, {}),
    "rnn": (nn.RNN, {}),
    "rnn with relu": (nn.RNN, {"nonlinearity": "relu"}),
}
FORMS = list(itertools.product((1, 2), (False, True), (False, True), (False, True)))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def given(module: Any) -> dict[str, tuple[Any, ...]]:
    """Returns inputs in all forms, without and with an initial state."""
    count = module.num_layers * (2 if module.bidirectional else 1)

    def state(samples: int) -> Any:
        hidden = draw(count, samples, module.proj_size or module.hidden_size)
        return (hidden, draw(count, samples, module.hidden_size, seed=1)) if module.mode == "LSTM" else hidden

    x, batch = draw(4, 6, 5), 4 if module.batch_first else 6
    one = tuple(part[:, 0] for part in state(1)) if module.mode == "LSTM" else state(1)[:, 0]
    sorted_, unsorted = (
        pack_sequence([draw(length, 5) for length in lengths], enforce_sorted=False)
        for lengths in ((5, 3, 3, 1), (2, 5, 1, 4))
    )
    return {
        "batch": (x,),
        "batch with a state": (x, state(batch)),
        "one sample": (x[0],),
        "one sample with a state": (x[0], one),
        "packed": (sorted_,),
        "packed, unsorted, with a state": (unsorted, state(4)),
    }


def assert_close(found: Any, expected: Any) -> None:
    pairs = zip(tree_leaves(tuples(found)), tree_leaves(tuples(expected)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def tuples(values: Any) -> Any:
    return [tuples(value) for value in values] if isinstance(values, tuple) else values


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("layers", "both", "batch_first", "bias"), FORMS)
def test_every_form_gives_what_pytorch_gives(name: str, layers: int, both: bool, batch_first: bool, bias: bool) -> None:
    torch.manual_seed(0)
    kind, options = MODULES[name]
    module = kind(5, 7, layers, bias=bias, batch_first=batch_first, bidirectional=both, **options).eval()
    opened = reachable(module)
    assert reachable(opened) is opened
    for what, args in given(module).items():
        assert opened is not module, what
        assert_close(opened(*args), module(*args))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_give_what_pytorch_gives(kind: Any, bias: bool) -> None:
    cell = kind(5, 7, bias=bias)
    opened = reachable(cell)
    assert [name for name, _ in quantizable_layers(opened)] == ["weight_ih", "weight_hh"]
    for x, hidden in ((draw(3, 5), draw(3, 7)), (draw(5), draw(7))):
        for state in (None, (hidden, 2 * hidden) if kind is nn.LSTMCell else hidden):
            assert_close(opened(x, state), cell(x, state))


def test_each_weight_is_a_layer_with_its_bias_under_the_name_of_the_parameter() -> None:
    module = nn.LSTM(5, 7, 2, bidirectional=True, proj_size=3)
    weights = [name for name, _ in module.named_parameters() if name.startswith("weight")]
    layers = dict(quantizable_layers(reachable(module)))
    assert sorted(layers) == sorted(weights)
    for name, layer in layers.items():
        assert torch.equal(layer.weight, getattr(module, name))
        bias = getattr(module, name.replace("weight", "bias"), None)
        assert (layer.bias is None) == (bias is None)
        assert layer.bias is None or torch.equal(layer.bias, getattr(module, name.replace("weight", "bias")))


def test_inputs_are_multiplied_once_and_states_at_every_step() -> None:
    specs = {spec.name: spec for spec in trace(Rows(nn.GRU), torch.zeros(1, 1, 8, 8))}
    assert (specs["rnn.weight_ih_l0"].calls, specs["rnn.weight_hh_l0"].calls) == (1, 8)
    assert specs["rnn.weight_ih_l0"].positions == specs["rnn.weight_hh_l0"].positions == 8


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.LSTMCell])
def test_states_of_before_and_of_now_load(kind: Any) -> None:
    module, other = kind(5, 7), kind(5, 7)
    opened, x = reachable(other), draw(3, 5)
    opened.load_state_dict(module.state_dict())
    assert_close(opened(x), module(x))
    reopened = reachable(kind(5, 7))
    reopened.load_state_dict(opened.state_dict())
    assert_close(reopened(x), module(x))


def test_copies_travel_and_train() -> None:
    module = nn.LSTM(5, 7, 2, dropout=0.5, bidirectional=True)
    opened, x = reachable(module).eval(), draw(4, 2, 5)
    for other in (copy.deepcopy(copy.deepcopy(opened)), copied(opened), pickle.loads(pickle.dumps(opened))):
        assert_close(other(x), module.eval()(x))
        other.double()(x.double())
    opened.train()
    first, second = opened(x)[0], opened(x)[0]
    assert not torch.equal(first, second), "dropout is active"
    first.sum().backward()
    assert all(parameter.grad is not None for parameter in opened.parameters())


def test_gradients_are_those_of_pytorch() -> None:
    module, x = nn.GRU(5, 7), draw(4, 2, 5)
    opened = reachable(module)
    networks: list[Any] = [module, opened]
    for network in networks:
        network(x)[0].square().sum().backward()
    for name, parameter in module.named_parameters():
        held = name if name.startswith("weight") else name.replace("bias", "weight")
        layer = opened.get_submodule(held)
        found = layer.get_parameter("weight" if held == name else "bias")
        torch.testing.assert_close(found.grad, parameter.grad, rtol=1e-4, atol=1e-5)


class Own(nn.LSTM):
    """Uses a weight in its own code."""

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x * self.weight_hh_l0.abs().mean())


def test_a_module_whose_own_code_uses_its_weights_stays_as_it_is() -> None:
    module = Own(5, 7)
    assert reachable(module) is module


def test_wrong_states_are_refused_as_by_pytorch() -> None:
    opened = reachable(nn.LSTM(5, 7))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 2, 7\), got \[1, 1, 7\]"):
        opened(draw(4, 2, 5), (draw(1, 1, 7), draw(1, 1, 7)))
