"""Recurrent networks in ONNX: loops whose size does not depend on the number of steps, with quantized states."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from haq.errors import ModelError
from haq.exports.onnx import to_onnx
from haq.layers import quantizable_layers, reachable
from haq.policy import BitPolicy, LayerBits
from haq.quant import calibrate, prepare

STEPS = 24


class _Own(nn.LSTM):
    """Has a forward pass of its own, so its loop is written step by step."""

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        y, state = super().forward(x[:, :2])
        return y, state


class _Readers(nn.Module):
    """One of every form, side by side."""

    def __init__(self) -> None:
        super().__init__()
        both: dict[str, Any] = {"batch_first": True, "bidirectional": True}
        self.lstm = nn.LSTM(5, 6, 2, **both)
        self.projected = nn.LSTM(5, 6, proj_size=4, bias=False, **both)
        self.gru = nn.GRU(5, 6, 2)
        self.tanh, self.relu = nn.RNN(5, 6, **both), nn.RNN(5, 6, nonlinearity="relu", batch_first=True)
        self.own = _Own(5, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_ones(self.lstm.num_layers * 2, x.shape[0], self.lstm.hidden_size)
        lstm, (end, cell) = self.lstm(x, (h, h / 2))
        gru, last = self.gru(x.transpose(0, 1))
        parts = [self.projected(x), self.tanh(x), self.relu(x), self.own(x)]
        outputs = [lstm.mean(1), end[1], cell[0], gru.mean(0), last[1], *(y.mean(1) for y, _ in parts)]
        return torch.cat([*outputs, *(state[0][0] for _, state in parts[:1])], 1)


def _quantized(network: nn.Module, x: Tensor) -> nn.Module:
    network = reachable(network.eval(), x[:1])
    widths = [LayerBits(8, 8), LayerBits(4, 5), LayerBits(None, 8), LayerBits(6, None)]
    names = [name for name, _ in quantizable_layers(network)]
    policy = BitPolicy({name: widths[place % 4] for place, name in enumerate(names)})
    return prepare(network, policy, calibration=calibrate(network, [x], [4, 5, 6, 8])).eval()


def test_every_form_gives_the_same_outputs_as_a_loop() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, STEPS, 5)
    network = _quantized(_Readers(), x)
    content = to_onnx(network, x[:1])
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    nodes = onnx.load_from_string(content).graph.node
    scans = [node for node in nodes if node.op_type == "Scan"]
    assert len(scans) == 4 + 2 + 2 + 2 + 1
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in (1, 7):
        with torch.no_grad():
            expected = network(x[:count]).numpy()
        (found,) = session.run(None, {"input": x[:count].numpy()})
        gap = np.abs(found - expected)
        assert (gap <= 1e-5).mean() > 0.9, "all but a state that lies between two codes"
        assert gap.max() < 0.02 * np.abs(expected).max()
    quantizers = [node for scan in scans for node in scan.attribute[0].g.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) >= len(scans) // 2, "states are quantized at every step"


def test_packed_sequences_are_refused_in_one_line() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader = nn.GRU(5, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            lengths = (x != 0).any(-1).sum(1)
            y: Tensor = self.reader(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1][0]
            return y

    x = torch.randn(3, 4, 5)
    with pytest.raises(ModelError, match="module .reader. runs packed sequences, .*export --format packed") as caught:
        to_onnx(_quantized(Packed(), x), x[:1])
    assert "\n" not in str(caught.value)
