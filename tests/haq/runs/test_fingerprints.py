"""What tells networks and data apart, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.config import SearchConfig
from haq.data import ImageData, Images, get_data
from haq.errors import HaqError
from haq.runs.fingerprints import data_fingerprint, fingerprint, same_numbers, sample_outputs, weights_fingerprint
from haq.models import get_model
from haq.runs.project import keep_float, open_project
from haq.runs import RunFolder
from haq.runs.relocation import Named, config_of


def _data(**changed: object) -> ImageData:
    rng = np.random.default_rng(0)
    splits = [
        Images(rng.integers(0, 256, (12, 4, 4, 1), np.uint8), np.arange(12) % 2, (0.5,), (0.5,)) for _ in range(3)
    ]
    return replace(ImageData("own", splits[0], splits[1], splits[2], 2), **changed)  # type: ignore[arg-type]


def _net(last: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), last or nn.ReLU(), nn.Linear(8, 2)).eval()


def test_the_same_network_and_data_have_one_fingerprint() -> None:
    assert weights_fingerprint(_net()) == weights_fingerprint(_net())
    assert data_fingerprint(_data()) == data_fingerprint(_data(name="elsewhere"))
    assert sample_outputs(_net(), _data()) == sample_outputs(_net(), _data()) != ()


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    "change",
    [
        lambda images: replace(images, y=np.where(np.arange(12) == 5, 1 - images.y, images.y)),
        lambda images: images.subset(range(11)),
        lambda images: images.subset(range(11, -1, -1)),
        lambda images: replace(images, x=np.where(np.arange(12)[:, None, None, None] == 11, 0, images.x)),
        lambda images: replace(images, mean=(0.4,)),
    ],
    ids=["label", "fewer", "order", "pixels", "preprocessing"],
)
def test_changed_samples_are_noticed(split: str, change: Callable[[Images], Images]) -> None:
    data = _data()
    assert data_fingerprint(replace(data, **{split: change(getattr(data, split))})) != data_fingerprint(data)
    assert data_fingerprint(_data(num_classes=3)) != data_fingerprint(data)


def test_one_changed_weight_is_noticed_and_its_layout_is_not() -> None:
    changed, laid_out = _net(), _net()
    with torch.no_grad():
        changed[1].weight[0, 0] += 1e-6
    laid_out[1].weight = nn.Parameter(laid_out[1].weight.detach().t().contiguous().t())
    assert weights_fingerprint(changed) != weights_fingerprint(_net())
    assert weights_fingerprint(laid_out) == weights_fingerprint(_net())


@pytest.mark.parametrize(
    "values", [torch.zeros(()), torch.zeros(0), torch.ones(3, dtype=torch.bfloat16), torch.tensor([True])]
)
def test_every_kind_of_buffer_has_a_fingerprint(values: Tensor) -> None:
    model = nn.Module()
    model.register_buffer("held", values)
    assert weights_fingerprint(model) == weights_fingerprint(model)


def test_code_that_computes_something_else_is_noticed() -> None:
    outputs = sample_outputs(_net(), _data())
    assert not same_numbers(outputs, sample_outputs(_net(nn.GELU()), _data()))
    assert same_numbers(outputs, [value * (1 + 1e-5) for value in outputs]), "sums in another order"
    assert not same_numbers(outputs, outputs[1:])


def test_a_network_that_draws_has_no_outputs_to_compare() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x.flatten(1), 0.5, training=True)

    assert sample_outputs(Noisy(), _data()) == ()


def test_addresses_in_printed_forms_do_not_count() -> None:
    class Applied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.function = lambda x: x

        def extra_repr(self) -> str:
            return str(self.function)

    assert fingerprint(Applied()) == fingerprint(Applied())


def test_the_built_in_network_is_kept_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine may train it to other weights; a run opens with its own."""

    def cached(seed: int) -> None:
        torch.manual_seed(seed)
        torch.save(get_model("digits-resnet").state_dict(), tmp_path / "digits-resnet-v1.pt")

    monkeypatch.setenv("HAQ_CACHE", str(tmp_path))
    cached(0)
    run = RunFolder(tmp_path / "run")
    config = SearchConfig(("size=50%",))
    project = open_project(config)
    run.write_config(config, {})
    run.write_identity(project.identity)
    keep_float(run, config, project.model)
    cached(1)
    again = open_project(config_of(run), None, run)
    assert again.identity.weights == project.identity.weights
    run.float.unlink()
    with pytest.raises(HaqError, match="the weights of model 'digits-resnet' have changed"):
        open_project(config_of(run), None, run)


def test_what_is_named_is_text_or_an_object() -> None:
    with pytest.raises(HaqError, match="weights=3: must be text or null"):
        Named(weights=3)  # type: ignore[arg-type]
    with pytest.raises(HaqError, match=r"model=int: must be text or a torch.nn.Module"):
        Named(model=3)
    assert Named(data=(1, 2), model="resnet20").texts() == {"data": "object:tuple", "model": "resnet20"}


@pytest.mark.parametrize(
    ("field", "name"), [("data", "npz:{}/images"), ("model", "{}/net.py:build"), ("hardware", "{}/table.CSV")]
)
def test_paths_are_found_beside_a_moved_run(tmp_path: Path, field: str, name: str) -> None:
    """In every form of name that holds one."""
    old, new = tmp_path / "old", tmp_path / "new"
    run = RunFolder(new / "run")
    config = replace(SearchConfig(("size=50%",)), **{field: name.format(old)})
    run.write_config(config, {}, old / "run")
    assert config_of(run) == config, "what is nowhere stays as it was, and is missed where it is opened"
    for file in ("images", "net.py", "table.CSV"):
        (new / file).mkdir()
    assert getattr(config_of(run), field) == name.format(new)


def test_digits_are_the_same_data_in_every_process() -> None:
    assert data_fingerprint(get_data("digits", 1000, 0)) == data_fingerprint(get_data("digits", 50, 9))
