import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ray import cloudpickle
from torch import nn

from haq.data import get_data
from haq.errors import DataError, ModelError
from haq.hwmodels.liveness import plan_or_none
from haq.layers import trace
from haq.models import load_model, open_model
from haq.policy import BitPolicy
from haq.quant.calibration import calibrate
from haq.quant.evaluation import evaluate, teacher_of
from haq.quant.folding import batch_norms_after, fold_batch_norm
from haq.quant.graph import is_layer, module_of, trace_graph
from haq.quant.preparation import load_quantized, prepare, save_quantized
from haq.quant.qat import Finetuning, Lessons
from tests.tiny_transformers import PIECE, save_language_model, save_vit, text

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf:{save_vit(tmp_path_factory.mktemp('vit'))}"


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def language_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_language_model(tmp_path_factory.mktemp("lm"), request.param, steps=20)
    (folder / "text.txt").write_text(text(80 * PIECE + 1))
    return folder


def opened(spec: str) -> nn.Module:
    return load_model(spec, None, 10, 3)


def test_an_image_classifier_gives_logits_under_its_own_names(vit: str) -> None:
    model = opened(vit)
    x = torch.randn(3, 3, 32, 32)
    expected = transformers.ViTForImageClassification.from_pretrained(vit[3:]).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x).logits)
    assert set(model.state_dict()) == set(expected.state_dict())


def test_it_survives_copies_and_rays_pickling(vit: str) -> None:
    model, x = opened(vit), torch.randn(1, 3, 32, 32)
    for other in (copy.deepcopy(model), cloudpickle.loads(cloudpickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert isinstance(other, transformers.ViTForImageClassification)


def test_linear_layers_of_blocks_count_every_token(vit: str) -> None:
    layers = {layer.name: layer for layer in trace(opened(vit), torch.zeros(1, 3, 32, 32))}
    tokens, width, hidden = 16 + 1, 32, 64
    assert layers["vit.layers.0.mlp.fc1"].macs == tokens * width * hidden
    assert layers["vit.layers.1.attention.q_proj"].macs == tokens * width * width
    assert layers["vit.layers.1.attention.q_proj"].in_size == (tokens, 1)
    assert layers["vit.embeddings.patch_embeddings.projection"].macs == 16 * 32 * 3 * 8 * 8
    assert layers["classifier"].macs == width * 10
    assert len(layers) == 2 + 2 * 6


@pytest.mark.parametrize("kind", ["ResNet", "MobileNetV1", "MobileNetV2"])
def test_batch_norms_of_convolutional_networks_are_folded(kind: str, tmp_path: Path) -> None:
    small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "bottleneck"}
    options = small if kind == "ResNet" else {"depth_multiplier": 0.25, "image_size": 32}
    config = getattr(transformers, f"{kind}Config")(**options, num_labels=4)
    getattr(transformers, f"{kind}ForImageClassification")(config).save_pretrained(tmp_path)
    model, x = opened(f"hf:{tmp_path}"), torch.randn(1, 3, 32, 32)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(batch_norms_after(model, x)) == len(norms) > 0
    folded = fold_batch_norm(model, x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(x), model(x), atol=1e-4, rtol=1e-3)
    plan = plan_or_none(model, x)
    assert plan is not None
    assert {step.layer for step in plan.steps} == {None, *(layer.name for layer in trace(model, x))}


def test_a_language_model_is_scored_at_every_position(language_model: Path) -> None:
    spec = f"hf:{language_model}"
    data = get_data(f"text:{language_model / 'text.txt'}", 12, 0, spec)
    model = open_model(spec, None, data, lambda done, total: None)
    score = evaluate(model, data.test, "float")
    assert score.samples == len(data.test) * PIECE
    x, y = data.test.batch(range(len(data.test)))
    with torch.no_grad():
        log_p = model(x).log_softmax(-1)
    assert score.loss == pytest.approx(float(-log_p.gather(-1, y[..., None]).mean()), rel=1e-5)
    assert score.top1 == pytest.approx(float((log_p.argmax(-1) == y).float().mean()))
    assert score.top1 > 1.5 / 16, "it was trained a little"


def test_gpt2_with_turned_weights_computes_the_same(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path, "gpt2")
    model, expected = opened(f"hf:{folder}"), transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    x = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x).logits)
    names = [layer.name for layer in trace(model, x)]
    assert names[:3] == ["transformer.wte", "transformer.wpe", "transformer.h.0.attn.c_attn"]
    assert len(names) == 2 + 2 * 4 + 1


def test_transformers_are_traced_for_any_number_of_samples(vit: str, language_model: Path) -> None:
    for model, x in (
        (opened(vit), torch.randn(5, 3, 32, 32)),
        (opened(f"hf:{language_model}"), torch.arange(5 * PIECE).view(5, PIECE) % 7),
    ):
        names = [layer.name for layer in trace(model, x[:1])]
        graph = trace_graph(model, "a test", x[:1], any_batch=True)
        with torch.no_grad():
            torch.testing.assert_close(graph(x), model(x))
        assert [node.target for node in graph.graph.nodes if is_layer(module_of(node, graph))] == names


def test_tied_embeddings_stay_as_they_are_when_the_head_is_quantized(language_model: Path) -> None:
    model = opened(f"hf:{language_model}")
    embedding, x = model.get_input_embeddings(), torch.arange(PIECE)[None]  # type: ignore[operator]
    assert model.lm_head.weight is embedding.weight
    before = embedding.weight.detach().clone()
    policy = BitPolicy.uniform(["lm_head"], 2)
    quantized = prepare(model, policy, calibration=calibrate(model, [x], [2]))
    assert quantized.lm_head.weight is quantized.get_input_embeddings().weight, "also tied in the copy"  # type: ignore[operator]
    codes = quantized.lm_head.weight_quantizer(quantized.lm_head.weight)  # type: ignore[operator]
    assert all(len(row.unique()) <= 4 for row in codes)
    quantized(x)
    assert torch.equal(quantized.get_input_embeddings()(x), embedding(x)), "looked up in floating point"  # type: ignore[operator]
    assert torch.equal(embedding.weight, before)


def test_a_language_model_is_fine_tuned_and_read_back(language_model: Path, tmp_path: Path) -> None:
    spec = f"hf:{language_model}"
    data = get_data(f"text:{language_model / 'text.txt'}", 12, 0, spec)
    model = opened(spec)
    x, _ = data.train.batch([0])
    layers = trace(model, x)
    policy = BitPolicy.uniform([layer.name for layer in layers], 3)
    quantized = prepare(model, policy, calibration=calibrate(model, [data.train.batch(range(32))[0]], [3]))
    lessons = Lessons(data.train, model, 0)
    stored = Finetuning(copy.deepcopy(quantized), lessons.prepared(12), 12)
    recomputed = Finetuning(quantized, lessons, 12)
    first, again = recomputed.run(1), stored.run(1)
    assert first == pytest.approx(again, rel=1e-4), "the teacher's answers are the same, stored or recomputed"
    assert recomputed.run(11) < first
    save_quantized(tmp_path / "model.pt", quantized, policy, x)
    assert torch.equal(load_quantized(tmp_path / "model.pt", model)(x), quantized(x))


def test_large_outputs_are_not_kept(vit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = get_data("digits", 10, 0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert isinstance(teacher_of(model, data.val), torch.Tensor)
    monkeypatch.setattr("haq.quant.evaluation._TEACHER_BYTES", 10 * 4 * len(data.val) - 1)
    assert teacher_of(model, data.val) is model


def test_other_folders_are_refused(tmp_path: Path, vit: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"cannot load model 'hf:.*empty'.*; give the folder or hub name") as error:
        opened(f"hf:{tmp_path / 'empty'}")
    assert "\n" not in str(error.value)
    transformers.CLIPVisionConfig().save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"is of type 'clip_vision_model'; give the folder"):
        opened(f"hf:{tmp_path / 'other'}")
    headless = tmp_path / "headless"
    shutil.copytree(vit[3:], headless)
    transformers.ViTModel.from_pretrained(vit[3:], add_pooling_layer=False).save_pretrained(headless)
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"architectures": ["ViTForImageClassification"]}))
    with pytest.raises(ModelError, match=r"lacks 2 weights: classifier\.bias, classifier\.weight"):
        opened(f"hf:{headless}")


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForImageClassification": "mine.Net"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match=r"it contains code, which haq does not run; load it in a file\.py:function"):
        opened(f"hf:{tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_classes_must_fit(vit: str, tmp_path: Path) -> None:
    narrow = f"hf:{save_vit(tmp_path, labels=4)}"
    (tmp_path / "d.py").write_text(
        "import numpy as np\n"
        "def load():\n    x, y = np.zeros((40, 32, 32, 3), np.uint8), np.arange(40) % 10\n    return (x, y), (x, y)\n"
    )
    data = get_data(f"{tmp_path / 'd.py'}:load", 10, 0)
    with pytest.raises(DataError, match=r"has 10 classes, but the model gives an output of shape \(1, 4\)"):
        open_model(narrow, None, data, lambda done, total: None)
    with pytest.raises(ModelError, match=r"fails on a sample of shape \(1, 1, 8, 8\)"):
        open_model(vit, None, get_data("digits", 10, 0), lambda done, total: None)


def test_offline_the_cache_is_read(tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "models--org--tiny"
    save_language_model(hub / "snapshots" / "0123")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0123")
    (tmp_path / "text.txt").write_text(text(40 * PIECE))
    command = [sys.executable, "-m", "haq", "profile", "--model", "hf:org/tiny", "--data", f"text:{tmp_path}/text.txt"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "lm_head" in result.stdout, result.stderr


def test_offline_a_model_missing_in_the_cache_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(ModelError) as error:
        opened("hf:org/no-such-model")
    assert str(error.value) == (
        "cannot load model 'hf:org/no-such-model': 'org/no-such-model' is neither a folder nor in the cache, and "
        "huggingface.co cannot be reached; give a folder, or go online once to fill the cache"
    )
    assert os.environ.get("HF_HUB_OFFLINE") is None, "the next one may be asked for"
