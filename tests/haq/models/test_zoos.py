import sys
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from haq.errors import HaqError, ModelError
from haq.io.prefixes import need
from haq.models import load_model


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=rf"model '{package}:resnet18' needs {package}, which .*; pip install 'haq\["):
        load_model(f"{package}:resnet18", None, 10, 3)


def test_a_package_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(ModelError, match=r"does not load \(operator torchvision::nms does not exist\); pip install"):
        load_model("torchvision:resnet18", None, 10, 3)
    with pytest.raises(HaqError, match=r"x needs no_such_package, which is not installed; pip install 'haq\[hf\]'"):
        need("no_such_package", "hf", "x", HaqError)


def test_names_reach_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for timm has the few functions that are called, as timm 1.0 documents them."""
    made: list[str] = []

    def create_model(name: str, pretrained: bool) -> nn.Module:
        made.append(f"{name} {pretrained}")
        return nn.Linear(2, 2)

    timm = SimpleNamespace(list_models=lambda pretrained: ["resnet18.a1_in1k"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", timm)  # type: ignore[arg-type]
    assert isinstance(load_model("timm:resnet18.a1_in1k", None, 10, 3), nn.Linear)
    assert isinstance(load_model("timm:resnet18", None, 10, 3), nn.Linear)
    assert made == ["resnet18.a1_in1k True", "resnet18 True"]
    with pytest.raises(ModelError, match=r"model 'timm:resnt18\.a1_in1k' is unknown \(did you mean 'resnet18"):
        load_model("timm:resnt18.a1_in1k", None, 10, 3)
