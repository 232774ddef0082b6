"""Recurrent networks of PyTorch, changed so that each of their weights is a linear layer that they call.

`nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells are one fused function of all their weights. PyTorch's own forward pass
stays in charge of checks, packed sequences and initial states; the function at its end is computed here. A layer's
weight of inputs multiplies a whole sequence at once, its weight of states one step.

The equations are those in the documentation of `torch.nn.LSTM`, `torch.nn.GRU` and `torch.nn.RNN`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from haq.layers.running import put_in_place
from haq.layers.splitting.base import Split, linear, mentions
from haq.layers.variants import become
from haq.torch_internals import FLAT_WEIGHTS, forget_flat_weights, parameters_of, recurrent_names

__all__ = ["Recurrent", "is_recurrent", "split_recurrent"]

State = tuple[Tensor, ...]
"""Hidden state, and that of the cell of an LSTM; `(N, H)` in one step, `(layers · directions, N, H)` of all layers."""

Step = Callable[[Tensor, Tensor, State], State]
"""`(products with the input, products with the hidden state, state) → next state`."""


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    i, f, g, o = (x + h).chunk(4, -1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (r_x, z_x, n_x), (r_h, z_h, n_h) = x.chunk(3, -1), h.chunk(3, -1)
    new = ((r_x + r_h).sigmoid() * n_h + n_x).tanh()
    return (torch.lerp(new, state[0], (z_x + z_h).sigmoid()),)


def _tanh(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).tanh(),)


def _relu(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).relu(),)


_SEQUENCES: dict[Any, Step] = {torch.lstm: _lstm, torch.gru: _gru, torch.rnn_tanh: _tanh, torch.rnn_relu: _relu}
_CELLS: dict[Any, Step] = {
    torch.lstm_cell: _lstm, torch.gru_cell: _gru, torch.rnn_tanh_cell: _tanh, torch.rnn_relu_cell: _relu
}  # fmt: skip


_MODULES = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)


class Recurrent(Split):
    """Mixed into `nn.LSTM`, `nn.GRU`, `nn.RNN` or a cell of one, so that it calls a layer for each of its weights."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the forward pass of the module's class up to the function of its weights, which calls the layers."""
        layers = {name: self.get_submodule(name) for name, new in self.moved.items() if new == (f"{name}.weight",)}
        weights: dict[str, Any] = {
            name: layer.weight for name, layer in layers.items()
        }  # PyTorch's code checks their types
        places: dict[str, Any] = {FLAT_WEIGHTS: list(weights.values())} if isinstance(self, nn.RNNBase) else weights
        with ExitStack() as stack:
            for name, value in places.items():
                stack.enter_context(put_in_place(self, name, value))
            stack.enter_context(_Calling(self, layers))
            return super().forward(*args, **kwargs)

    def flatten_parameters(self) -> None:
        """Does nothing; of PyTorch's networks, it brings the weights together for a fused kernel."""


class _Calling(TorchFunctionMode):
    def __init__(self, module: nn.Module, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self._module, self._layers = module, layers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SEQUENCES:
            packed = not isinstance(args[2], list)  # a packed sequence has its sizes before the state and the weights
            x, start, sizes = (args[0], args[2], args[1].tolist()) if packed else (args[0], args[1], None)
            state = tuple(start) if func is torch.lstm else (start,)
            return _sequence(self._module, self._layers, _SEQUENCES[func], x, state, sizes)
        if func in _CELLS:
            x, start, *_ = args
            state = tuple(start) if func is torch.lstm_cell else (start,)
            ih, hh = self._layers.values()
            new = _CELLS[func](ih(x), hh(state[0]), state)
            return new if func is torch.lstm_cell else new[0]
        return func(*args, **(kwargs or {}))


def _sequence(
    module: Any, layers: dict[str, nn.Module], step: Step, x: Tensor, start: State, sizes: list[int] | None
) -> tuple[Tensor, ...]:
    """Returns the outputs of the last layer, and the state of all layers after their last step.

    Args:
        module: For its options.
        layers: Name of a weight → layer that holds it.
        step: Equations of one step.
        x: `(T, N, in)`, or `(N, T, in)` if the module says so; `(sum of sizes, in)` of a packed sequence.
        start: Initial state of all layers.
        sizes: Samples in every step of a packed sequence, which never grow.
    """
    time = 1 if module.batch_first and sizes is None else 0
    ends: list[State] = []
    for number in range(module.num_layers):
        outputs = []
        for reverse in (False, True) if module.bidirectional else (False,):
            suffix = f"l{number}_reverse" if reverse else f"l{number}"
            ih = layers[f"weight_ih_{suffix}"]
            # Layers get samples first, as everywhere
            products = ih(x) if time or sizes is not None else ih(x.transpose(0, 1)).transpose(0, 1)
            steps = products.unbind(time) if sizes is None else products.split(sizes)
            state = tuple(part[len(ends)] for part in start)
            hh, hr = layers[f"weight_hh_{suffix}"], layers.get(f"weight_hr_{suffix}")
            ys, end = _direction(step, hh, hr, steps[::-1] if reverse else steps, state)
            ys = ys[::-1] if reverse else ys
            outputs.append(torch.stack(ys, time) if sizes is None else torch.cat(ys))
            ends.append(end)
        x = torch.cat(outputs, -1) if module.bidirectional else outputs[0]
        if module.dropout and number < module.num_layers - 1:
            x = F.dropout(x, module.dropout, module.training)
    return x, *(torch.stack(parts) for parts in zip(*ends, strict=True))


def _direction(
    step: Step, hh: nn.Module, hr: nn.Module | None, steps: Sequence[Tensor], start: State
) -> tuple[list[Tensor], State]:
    """Runs one layer in one direction; returns its outputs, and its state after the last step of every sample.

    Args:
        step: Equations of one step.
        hh: Layer with the weight of the hidden state.
        hr: Layer that projects the hidden state, if there is one.
        steps: Products with the input, `(n, gates)`; n shrinks or grows as samples end or, in reverse, begin.
        start: Initial state of all samples.
    """
    state, outputs, ended = tuple(part[: steps[0].shape[0]] for part in start), [], list[State]()
    for products in steps:
        count, running = products.shape[0], state[0].shape[0]
        if count < running:
            ended.append(tuple(part[count:] for part in state))
            state = tuple(part[:count] for part in state)
        elif count > running:
            state = tuple(torch.cat([part, new[running:count]]) for part, new in zip(state, start, strict=True))
        hidden, *rest = step(products, hh(state[0]), state)
        state = (hidden if hr is None else hr(hidden), *rest)
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(parts) for parts in zip(state, *ended[::-1], strict=True))
    return outputs, state


def is_recurrent(module: nn.Module) -> bool:
    """Whether `split_recurrent` can change a module.

    It cannot if the module's own code uses its weights, or computes one of them; then the module stays as it is.
    """
    if isinstance(module, Recurrent) or not isinstance(module, _MODULES):
        return False
    names = recurrent_names(module)
    return names.keys() <= parameters_of(module).keys() and not mentions(type(module), names)


def split_recurrent(module: nn.Module) -> None:
    """Changes a module for which `is_recurrent` holds, in place, so that each of its weights is a layer that it calls.

    The layer of `weight_hh_l0` has this name and also holds `bias_hh_l0`.
    """
    parameters, moved = parameters_of(module), dict[str, tuple[str, ...]]()
    names = recurrent_names(module)
    forget_flat_weights(module)
    for name, bias in names.items():
        layer = linear(cast(nn.Parameter, parameters.pop(name)), parameters.get(bias), module.training)
        moved[name] = (f"{name}.weight",)
        if layer.bias is not None:
            parameters[bias], moved[bias] = None, (f"{name}.bias",)
        module.add_module(name, layer)
    become(module, Recurrent)
    module.moved = moved  # type: ignore[assignment]
