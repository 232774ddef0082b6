"""A whole search of a small network, and what must hold for its result and its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import get_data
from haq.errors import ModelError
from haq.exports.packed import load_packed
from haq.quant.modules import Quantized
from haq.search import run
from haq.search.results import Result

CLASSES = 3
BATCHES = (1, 5)
SAME = 1e-4  # of the largest logit: kernels add in another order

Array = NDArray[Any]
Data = Callable[[int], tuple[Array, Array]]
"""Number of samples → inputs and labels."""


@dataclass(frozen=True)
class Case:
    """A network and its data.

    Attributes:
        make: Builds the float network.
        data: Makes samples.
        layers: Names that must be among the layers.
        refused: What the ONNX export says, if it cannot write the network.
    """

    make: Callable[[], nn.Module]
    data: Data
    layers: tuple[str, ...]
    refused: str | None = None


def told(*shape: int) -> Data:
    """Returns data of noise whose values tell one of three classes."""

    def data(count: int) -> tuple[Array, Array]:
        rng = np.random.default_rng(count)
        y = rng.integers(0, CLASSES, count)
        patterns = np.random.default_rng(0).standard_normal((CLASSES, *shape))
        return (patterns[y] + 0.5 * rng.standard_normal((count, *shape))).astype(np.float32), y

    return data


def check(case: Case, folder: Path) -> None:
    """Trains a network, searches it, and checks the result, its reports and its files."""
    arrays = tuple(case.data(count) for count in (160, 60))
    data = get_data(arrays, 30, 0)
    network = _trained(case.make, data.train.batch(range(len(data.train))))
    result = run(
        network, arrays, constraints="size=80%", trials=2, qat_steps=1, finetune_steps=1, workers=1, val_images=30,
        pin_ends=False, agent="random", out=folder / "run",
    )  # fmt: skip
    assert [trial.error for trial in result.trials] == [None] * len(result.trials)
    names = [layer.name for layer in result.read_layers()]
    assert set(case.layers) <= set(names)
    assert set(result.best.policy) == set(names)
    assert result.best.test_top1 is not None
    assert result.best.test_top1 > 0.7, "chance is a third"
    _check_reports(result, names, folder)

    quantized = result.network()
    assert {name for name, layer in quantized.named_modules() if isinstance(layer, Quantized)} == set(names)
    x = data.test.batch(range(len(data.test)))[0]
    _check_packed(result, network, quantized, x, folder)
    if case.refused is None:
        _check_onnx(result, quantized, x, folder / "net.onnx")
    else:
        with pytest.raises(ModelError, match=case.refused) as caught:
            result.export("onnx", folder / "net.onnx")
        assert "\n" not in str(caught.value)


def _trained(make: Callable[[], nn.Module], batch: tuple[Tensor, Tensor]) -> nn.Module:
    torch.manual_seed(0)
    network, (x, y) = make().train(), batch
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x).flatten(0, -2), y.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval()


def _check_reports(result: Result, names: list[str], folder: Path) -> None:
    page = result.report(folder / "report.html").read_text()
    table = str(result.export("csv"))
    for name in names:
        assert name in page
        assert f"{name}," in table


def _check_packed(result: Result, network: nn.Module, quantized: nn.Module, x: Tensor, folder: Path) -> None:
    """The packed file gives the network's outputs to the bit; with batch norms folded, it holds what was predicted."""
    restored = load_packed(Path(result.export("packed", folder / "net.safetensors")), network)
    for count in BATCHES:
        with torch.no_grad():
            assert torch.equal(quantized(x[:count]), restored(x[:count]))
    content = Path(result.export("packed-folded", folder / "folded.safetensors")).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")  # names and shapes, which weigh in so small a file
    unbiased = (layer for layer in result.read_layers() if layer.kind == "linear" and not layer.biases)
    absent = 4 * sum(layer.out_channels for layer in unbiased)  # a bias is counted for each, which a norm may need
    predicted = result.best.cost["size_bytes"] - absent
    assert len(content) - header == pytest.approx(predicted, rel=0.03), f"of {len(content)}, {header} are names"


def _check_onnx(result: Result, quantized: nn.Module, x: Tensor, path: Path) -> None:
    """onnxruntime gives the network's outputs for any batch size."""
    session = onnxruntime.InferenceSession(result.export("onnx", path), providers=["CPUExecutionProvider"])
    for count in BATCHES:
        with torch.no_grad():
            expected = quantized(x[:count]).numpy()
        (found,) = session.run(None, {"input": x[:count].numpy()})
        assert found.shape == expected.shape
        assert np.array_equal(found.argmax(-1), expected.argmax(-1))
        assert found == pytest.approx(expected, abs=SAME * float(np.abs(expected).max()))
