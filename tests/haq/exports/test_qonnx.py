"""QONNX files, opened and run by the `qonnx` package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_datatypes import InferDataTypes
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.util.cleanup import cleanup_model
from torch import nn

from haq.data import get_data
from haq.errors import ConfigError
from haq.exports import export_run
from haq.exports.formats import run_policy
from haq.exports.qonnx import to_qonnx
from haq.exports.run_network import open_run
from haq.quant.modules import Quantized
from haq.quant.quantizers.uniform import uniform
from haq.runs import RunFolder

from .conftest import GRIDS, IMAGES, Prepared, Side


def _run(model: Any, x: torch.Tensor) -> Any:
    name = model.graph.input[0].name
    return np.concatenate([next(iter(execute_onnx(model, {name: image[None].numpy()}).values())) for image in x])


def test_a_run_is_read_cleaned_and_executed(searched: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    assert export_run(searched, "qonnx", path) == path
    x, _ = get_data("digits", 1000, 0).test.batch(range(4))
    with torch.no_grad():
        expected = open_run(searched, run_policy(searched)).network(x).numpy()
    model = ModelWrapper(str(path))
    assert _run(model, x) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    widths = {
        node.output[0]: float(model.get_initializer(node.input[3])) for node in model.get_nodes_by_op_type("Quant")
    }
    assert widths == {
        f"{name}.{what}_quantized": bits
        for name, layer in run_policy(searched).items()
        for what, bits in (("weight", layer.w_bits), ("input", layer.a_bits))
    }
    clean = cleanup_model(model).transform(InferDataTypes())
    assert _run(clean, x) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert len(clean.get_nodes_by_op_type("Quant")) == 6


def test_every_form_of_grid_gives_the_same_outputs(prepared: Callable[..., Prepared]) -> None:
    networks = Side(prepared(scheme, w, a, **options)[0] for scheme, w, a, options in GRIDS).eval()
    with torch.no_grad():
        expected = networks(IMAGES[:1]).numpy().reshape(1, len(GRIDS), -1)
    model = ModelWrapper(onnx.load_from_string(to_qonnx(networks, IMAGES[:1]))).transform(InferShapes())
    found = _run(model, IMAGES[:1]).reshape(expected.shape)
    for place, grid in enumerate(GRIDS):
        assert found[:, place] == pytest.approx(expected[:, place], rel=1e-4, abs=1e-4), grid
    assert len(model.get_nodes_by_op_type("BipolarQuant")) == 3 + 1, "weights of linear 1, and its only signed input"


def test_symmetric_and_asymmetric_weights_side_by_side(prepared: Callable[..., Prepared]) -> None:
    nets = []
    for bits in range(1, 9):
        network, _ = prepared("linear", bits, 5)
        for name in ("conv", "fc"):
            layer = network.get_submodule(name)
            assert isinstance(layer, Quantized)
            layer.weight = nn.Parameter(layer.weight + layer.weight.std())
            layer.weight_quantizer = uniform(layer.weight, bits, symmetric=False, signed=True)
        nets.append(network)
    networks = Side(nets).eval()
    with torch.no_grad():
        expected = networks(IMAGES[:1]).numpy()
    model = ModelWrapper(onnx.load_from_string(to_qonnx(networks, IMAGES[:1]))).transform(InferShapes())
    assert _run(model, IMAGES[:1]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    quants = {node.output[0]: node for node in model.get_nodes_by_op_type("Quant")}
    for bits in range(1, 9):
        _, scale, zero, width = (
            model.get_initializer(name) for name in quants[f"{bits - 1}.fc.weight_quantized"].input
        )
        assert scale.shape == zero.shape == (5, 1)
        assert float(width) == bits


def test_codebooks_are_refused_by_name(prepared: Callable[..., Prepared]) -> None:
    with pytest.raises(ConfigError, match="scheme 'kmeans' stores the weights of layer 'conv' as a table of levels"):
        to_qonnx(prepared("kmeans", 4, 8)[0], IMAGES[:1], "kmeans")
