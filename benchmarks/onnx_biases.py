"""What it costs in onnxruntime that an exported layer's bias is an addition of its own, and what it is worth.

Usage: python benchmarks/onnx_biases.py
"""

from __future__ import annotations

import time
from statistics import median
from unittest.mock import patch

import onnxruntime
import torch
from torch import nn

from haq.exports.onnx import _QDQ, to_onnx
from haq.layers import trace
from haq.policy import BitPolicy
from haq.quant import calibrate, prepare

_REPEATS, _BATCH = 60, 16


def main() -> None:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3 if number == 0 else 32, 32, 3, padding=1) for number in range(6)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    network = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())), *head).eval()
    x = torch.randn(64, 3, 32, 32)
    names = [layer.name for layer in trace(network, x[:1])]
    quantized = prepare(network, BitPolicy.uniform(names, 8), calibration=calibrate(network, [x], [8])).eval()
    files = {"float": _float(network, x[:2]), "8 bits, biases apart": to_onnx(quantized, x[:1])}
    with patch.object(_QDQ, "bias_apart", False):
        files["8 bits, biases in the layers"] = to_onnx(quantized, x[:1])
    sessions = {
        name: onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for name, file in files.items()
    }
    times: dict[str, list[float]] = {name: [] for name in sessions}
    outputs = {}
    for _ in range(_REPEATS):  # in turn, so that a busy moment meets all
        for name, session in sessions.items():
            start = time.perf_counter()
            (outputs[name],) = session.run(None, {session.get_inputs()[0].name: x[:_BATCH].numpy()})
            times[name].append(time.perf_counter() - start)
    with torch.no_grad():
        expected = {name: (network if name == "float" else quantized)(x[:_BATCH]) for name in sessions}
    for name, seconds in times.items():
        error = float((torch.from_numpy(outputs[name]) - expected[name]).abs().max() / expected[name].abs().max())
        ratio = median(seconds) / median(times["float"])
        print(
            f"{name:30} {median(seconds) * 1e3:6.1f} ms, {ratio:.2f} of float; off by {error:.1e} of the largest output"
        )


def _float(network: nn.Module, example: torch.Tensor) -> bytes:
    dims = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(network, (example,), dynamo=True, verbose=False, dynamic_shapes=dims)
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


if __name__ == "__main__":
    main()
