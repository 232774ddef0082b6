from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from haq.data import get_data
from haq.errors import ModelError
from haq.layers import trace
from haq.models import get_model, list_models, load_model
from haq.models.pretrained import pretrained_digits, train_digits
from haq.quant.evaluation import evaluate
from tests.shared_data import CIFAR10, RESNET20, needs_shared_data


def macs(name: str, *shape: int) -> int:
    return sum(layer.macs for layer in trace(get_model(name), torch.zeros(1, *shape)))


def test_published_sizes() -> None:
    """MACs and parameters of He et al. 2015, Howard et al. 2017 and torchvision's mobilenet_v2."""
    assert macs("resnet20", 3, 32, 32) == pytest.approx(40.55e6, rel=1e-3)
    assert macs("resnet56", 3, 32, 32) == pytest.approx(125.5e6, rel=2e-3)
    assert macs("mobilenet-v1", 3, 224, 224) == pytest.approx(569e6, rel=3e-3)
    assert macs("mobilenet-v2", 3, 224, 224) == pytest.approx(300.8e6, rel=1e-3)
    assert sum(p.numel() for p in get_model("mobilenet-v2").parameters()) == 3_504_872
    assert sum(p.numel() for p in get_model("mobilenet-v1").parameters()) == 4_231_976


def test_torchvision_keys_of_mobilenet_v2() -> None:
    state = get_model("mobilenet-v2").state_dict()
    shapes = {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.2.conv.3.running_mean": (24,),
        "features.17.conv.2.weight": (320, 960, 1, 1),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (1000, 1280),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


@pytest.mark.parametrize("name", list_models())
def test_every_model_takes_classes_and_channels(name: str) -> None:
    model = get_model(name, num_classes=7, in_channels=2).eval()
    assert model(torch.zeros(1, 2, 64, 64)).shape == (1, 7)


@needs_shared_data
def test_published_accuracy_of_resnet20() -> None:
    data = get_data(f"npz:{CIFAR10}", 1000, seed=0)
    model = load_model("resnet20", str(RESNET20), 10, 3)
    some = data.test.subset(np.arange(1000))
    assert evaluate(model, some, "float").top1 == pytest.approx(0.9176, abs=0.012)


def test_code_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\ndef build():\n    return nn.Linear(2, 2)\ndef wrong():\n    return {}\n")
    assert isinstance(load_model(f"{file}:build", None, 2, 1), nn.Linear)
    with pytest.raises(ModelError, match=r"returned dict, not a torch\.nn\.Module"):
        load_model(f"{file}:wrong", None, 2, 1)
    file.write_text("from torch import nn\ndef lazy():\n    return nn.LazyLinear(2)\n")
    with pytest.raises(ModelError, match=r"'weight' of .* has no shape yet"):
        load_model(f"{file}:lazy", None, 2, 1)


def test_only_a_wrappers_prefix_is_taken_off(tmp_path: Path) -> None:
    path, file = tmp_path / "w.pt", tmp_path / "net.py"
    file.write_text("from torch import nn\ndef build():\n    return nn.ModuleDict({'module': nn.Linear(1, 1)})\n")
    state = {"module.weight": torch.full((1, 1), 3.0), "module.bias": torch.zeros(1)}
    for saved in (state, {f"module.{name}": value for name, value in state.items()}):
        torch.save(saved, path)
        assert float(load_model(f"{file}:build", str(path), 2, 1).state_dict()["module.weight"]) == 3


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {"module.0.weight": torch.zeros(2, 2), "extra": torch.zeros(1)}}, path)
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(3, 2))\n")
    with pytest.raises(ModelError) as error:
        load_model(f"{file}:build", str(path), 2, 1)
    message = str(error.value)
    assert "1 missing: 0.bias" in message
    assert "1 unknown: extra" in message
    assert "0.weight is (2, 2) but should be (2, 3)" in message
    assert "\n" not in message


def test_bad_weights(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("code ran",))

    path = tmp_path / "w.pt"
    with pytest.raises(ModelError, match="does not exist"):
        load_model("resnet20", str(path), 10, 3)
    torch.save({"a": Evil()}, path)
    with pytest.raises(ModelError, match="not a plain state dict"):
        load_model("resnet20", str(path), 10, 3)
    torch.save({1: torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="not a state dict of tensors"):
        load_model("resnet20", str(path), 10, 3)
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="hold list, not a state dict"):
        load_model("resnet20", str(path), 10, 3)
    state = get_model("resnet20").state_dict()
    state["conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"'conv1\.weight' of 'resnet20' has NaN"):
        load_model("resnet20", str(path), 10, 3)


def test_unknown_and_untrained_names() -> None:
    with pytest.raises(ModelError, match="did you mean 'resnet"):
        get_model("resnet2")
    with pytest.raises(ModelError, match="give --weights FILE"):
        load_model("resnet20", None, 10, 3)


def test_the_default_network_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAQ_CACHE", str(tmp_path))
    monkeypatch.setattr("haq.models.pretrained._EPOCHS", 1)
    train = get_data("digits", 1000, seed=0).train.subset(np.arange(128))
    epochs: list[int] = []
    first = pretrained_digits(train, lambda done, total: epochs.append(done))
    assert epochs == [0, 1]
    again = pretrained_digits(train, lambda done, total: epochs.append(done))
    assert epochs == [0, 1], "the cache answers"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    next(tmp_path.iterdir()).write_bytes(b"broken")
    pretrained_digits(train, lambda done, total: epochs.append(done))
    assert epochs == [0, 1, 0, 1], "a damaged cache is trained again"


def test_the_default_network_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HAQ_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("haq.models.pretrained._EPOCHS", 1)
    train = get_data("digits", 1000, seed=0).train.subset(np.arange(64))
    assert pretrained_digits(train, lambda done, total: None)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_training_is_repeatable_and_leaves_global_randomness_alone() -> None:
    train = get_data("digits", 1000, seed=0).train.subset(np.arange(64))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other = (train_digits(train, 1, lambda done, total: None) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
