"""The kind of layer that docs/layers.md adds, in a search whose trials run in a worker of Ray, and in files."""

from pathlib import Path

import onnxruntime
import pytest
import torch

from haq.errors import ModelError
from haq.exports.packed import load_packed
from haq.io.user_code import call_named
from haq.registry import LAYERS
from haq.search import run

from ..docs.documents import blocks

pytestmark = pytest.mark.usefixtures("one_ray")


def test_a_kind_of_ones_own_is_searched_and_exported(tmp_path: Path) -> None:
    (example,) = (block.text for block in blocks("python") if block.page == "docs/layers.md")
    file = tmp_path / "my_sensors.py"
    file.write_text(example)
    try:
        result = run(
            f"{file}:build", f"{file}:data", constraints="size=60%", trials=2, qat_steps=1, finetune_steps=1, workers=1,
            val_images=30, pin_ends=False, agent="random", out=tmp_path / "run",
        )  # fmt: skip
        assert [(layer.name, layer.kind) for layer in result.read_layers()] == [("0", "per-sensor"), ("2", "linear")]
        assert [trial.error for trial in result.trials] == [None, None]
        packed, content = (result.export(form, tmp_path / form) for form in ("packed", "onnx"))
        x = torch.randn(5, 4, 8)
        with torch.no_grad():  # each opening runs the file again, whose classes are new then
            expected = result.network()(x)
            model = call_named(f"{file}:build", "model", ModelError)
            assert torch.equal(load_packed(Path(packed), model)(x), expected)
        session = onnxruntime.InferenceSession(content)
        assert session.run(None, {"input": x.numpy()})[0] == pytest.approx(expected.numpy(), abs=1e-4)
    finally:
        LAYERS._added.clear()
        LAYERS.changes += 1
