"""Whole searches over networks of `transformers`, from the command line's options to the exported widths."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from haq.cli.main import cli
from haq.data import get_data
from haq.models import open_model
from haq.quant.calibration import calibrate
from haq.quant.evaluation import evaluate
from haq.quant.run_network import open_quantized
from haq.runs import RunFolder
from haq.search.sensitivity import measure_sensitivity
from haq.search.sensitivity.curvature import curvature

from ..tiny_transformers import PIECE, digits_32, save_language_model, save_vit, text

pytest.importorskip("transformers")

SHORT = ("--constraint", "latency=60%", "--trials", "3", "--qat-steps", "2", "--finetune-steps", "4", "--workers", "1")

pytestmark = pytest.mark.usefixtures("one_ray")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = save_vit(tmp_path_factory.mktemp("vit"), steps=120)
    x, y = digits_32(700)
    np.savez(folder / "train.npz", x=x[:600], y=y[:600], mean=[0.5] * 3, std=[0.5] * 3)
    np.savez(folder / "test.npz", x=x[600:], y=y[600:])
    return f"hf:{folder}", f"npz:{folder}"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = save_language_model(tmp_path_factory.mktemp("llama"), steps=60)
    (folder / "text.txt").write_text(text(200 * PIECE))
    return f"hf:{folder}", f"text:{folder / 'text.txt'}"


@pytest.mark.parametrize("kind", ["vit", "llama"])
def test_search_report_and_export(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model, data = request.getfixturevalue(kind)
    out = tmp_path / "run"
    result = CliRunner().invoke(
        cli, ["search", "--model", model, "--data", data, *SHORT, "--out", str(out)], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert ("ranked by loss" in result.output) == (kind == "llama")
    run = RunFolder.open(out)
    best, layers = run.read_best(), run.read_layers()
    first = "vit.embeddings.patch_embeddings.projection" if kind == "vit" else "model.embed_tokens"
    assert layers[0].name == first
    assert best.cost["latency_ms"] <= best.constraints["latency_ms"]  # type: ignore[operator]
    assert [trial.error for trial in run.read_trials()] == [None] * 3
    if kind == "llama":
        for trial in run.read_trials():
            assert trial.score is not None
            assert trial.objective == pytest.approx(math.exp(-trial.score.loss))
    opened = open_quantized(run, best.policy)  # with the tokenizer of the model
    assert evaluate(opened.network, opened.data.test, "qat").top1 == pytest.approx(best.test_top1)
    assert CliRunner().invoke(cli, ["export", str(out), "--format", "packed"], catch_exceptions=False).exit_code == 0
    assert CliRunner().invoke(cli, ["report", str(out)], catch_exceptions=False).exit_code == 0
    widths = json.loads(CliRunner().invoke(cli, ["export", str(out), "--format", "json"]).output)
    assert set(widths["layers"]) == {layer.name for layer in layers}
    assert widths["layers"][first] == {"w_bits": 8, "a_bits": 8}


def test_sensitivity_of_a_language_model_is_a_mean_over_positions(llama: tuple[str, str]) -> None:
    data = get_data(llama[1], 30, 0, llama[0])
    model = open_model(llama[0], None, data, lambda done, total: None)
    layer = "model.layers.0.mlp.up_proj"
    calibration = calibrate(model, [data.train.batch(range(16))[0]], [2])
    found = measure_sensitivity(model, calibration, data.val, [layer], [2], ("kl", "loss"))
    weight = model.get_submodule(layer).weight
    quantized = calibration[layer].weights[2].weight(weight.detach())
    x, y = data.val.batch(range(len(data.val)))
    with torch.no_grad():
        exact = model(x).double().log_softmax(-1)
        kept = weight.detach().clone()
        weight.copy_(quantized)
        changed = model(x).double().log_softmax(-1)
        weight.copy_(kept)
    kl = (exact.exp() * (exact - changed)).sum(-1).mean()
    rise = (exact - changed).gather(-1, y[..., None]).mean()
    assert found["kl"].weights[0, 0] == pytest.approx(float(kl), rel=1e-3)
    assert found["loss"].weights[0, 0] == pytest.approx(float(rise), rel=1e-3, abs=1e-7)


def test_curvature_at_several_positions_adds_up() -> None:
    """For a linear model with an output at every position: Tr(S ⊗ aaᵀ) summed over positions."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    x = torch.randn(2, 5, 4)
    p = model(x).softmax(-1).detach()
    exact = ((p - p**2).sum(-1) * x.square().sum(-1)).sum()
    found = curvature(model, ["0"], x, 400, torch.Generator().manual_seed(0))
    assert found.weights[0] == pytest.approx(float(exact), rel=0.15)
