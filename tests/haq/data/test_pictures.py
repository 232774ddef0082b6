import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haq.data import Images, get_data
from haq.data.preprocessing import preprocessing_of
from haq.errors import DataError, HaqError
from tests.tiny_transformers import digits_32

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PROCESSORS: dict[str, dict[str, Any]] = {
    # Those of microsoft/resnet-50, google/mobilenet_v1_1.0_224 and google/efficientnet-b0, with smaller sizes
    "resnet": {
        "feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "size": 28, "resample": 3,
        "do_normalize": True, "do_resize": True, "image_mean": MEAN, "image_std": STD,
    },
    "mobilenet": {
        "image_processor_type": "MobileNetV1ImageProcessor", "size": {"shortest_edge": 32}, "resample": 2,
        "crop_size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    },
    "efficientnet": {"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 28, "width": 28}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder of pictures by class, 60 for training and 20 for testing."""
    x, y = digits_32(80)
    for number, (picture, label) in enumerate(zip(x, y % 4, strict=True)):
        folder = tmp_path / "pictures" / ("train" if number < 60 else "test") / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return tmp_path / "pictures"


def processor(folder: Path, name: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
    return f"hf:{folder}"


@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_are_prepared_as_the_models_own_processor_does(name: str, folders: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    model = processor(tmp_path / "model", name)
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8))
    for path in folders.glob("*/class 0/*.png"):
        wide.save(path)
    data = get_data(f"imagefolder:{folders}", 8, 0, model)
    expected = AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")([wide], return_tensors="np")
    assert isinstance(data.train, Images)
    assert data.train.x.dtype == np.uint8
    x, y = data.train.batch(np.flatnonzero(data.train.y == 0)[:1])
    assert (x.shape, y.tolist()) == ((1, 3, 28, 28), [0])
    np.testing.assert_allclose(x.numpy(), expected["pixel_values"], atol=1e-3)


def test_splits_as_found(folders: Path, tmp_path: Path) -> None:
    data = get_data(f"imagefolder:{folders}", 12, 0, processor(tmp_path / "model", "resnet"))
    assert (len(data.train) + len(data.val), len(data.test), data.num_classes) == (60, 20, 4)
    assert 8 <= len(data.val) <= 12
    (folders / "test").rename(folders / "validation")
    saved = tmp_path / "saved"
    datasets.load_dataset("imagefolder", data_dir=str(folders)).save_to_disk(saved)
    data = get_data(f"hf:{saved}", 6, 0, processor(tmp_path / "model", "resnet"))
    assert len(data.train) == 60, "validation images need not come out of them"
    assert 4 <= len(data.val) <= 8
    assert 8 <= len(data.test) <= 12, "half of the validation images"


def test_a_part_is_held_out_for_testing_and_reported(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = (get_data(f"imagefolder:{folders / 'train'}", 6, seed, None) for seed in (0, 1))
    assert 10 <= len(one.test) <= 14
    assert np.array_equal(one.test.x, other.test.x), "whatever the seed"
    assert not np.array_equal(one.val.x, other.val.x)
    seen = {picture.tobytes() for picture in one.train.x}
    assert not seen & {picture.tobytes() for picture in one.test.x}
    lines = [record.getMessage() for record in caplog.records]
    assert any("has no labelled test split: testing on 12 of the training images" in line for line in lines), lines
    assert any("keep their size, 32 × 32, and are normalised with ImageNet's statistics" in line for line in lines)


def test_secret_test_labels_are_no_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, y = digits_32(60)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(10)})

    def split(labels: np.ndarray) -> Any:
        pictures = [Image.fromarray(picture[..., 0]) for picture in x]
        return datasets.Dataset.from_dict({"img": pictures, "label": labels.tolist()}, features=features)

    datasets.DatasetDict({"train": split(y), "test": split(y * 0 - 1)}).save_to_disk(tmp_path / "saved")
    data = get_data(f"hf:{tmp_path / 'saved'}", 6, 0)
    assert data.train.x.shape[1:] == (32, 32, 1), "grey pictures stay grey"
    assert data.num_classes == 10
    assert len(data.test) < 20
    assert "has no labelled test split" in caplog.text


def test_only_a_part_is_read_if_a_split_does_not_fit(
    folders: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("haq.data.pictures._MOST_BYTES", 40 * 32 * 32 * 3)
    with caplog.at_level(logging.WARNING):
        data = get_data(f"imagefolder:{folders}", 8, 0)
    assert len(data.train) + len(data.val) == 40
    assert len(np.unique(data.train.y)) == 4
    assert "reading only 40 of 60 images" in caplog.text


def refused(spec: str, model: str | None = None) -> str:
    with pytest.raises(HaqError) as error:
        get_data(spec, 8, 0, model)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_read(folders: Path, tmp_path: Path) -> None:
    assert "does not exist; give folders of images by class" in refused(f"imagefolder:{tmp_path / 'no'}")
    (tmp_path / "empty").mkdir()
    assert "cannot load data" in refused(f"imagefolder:{tmp_path / 'empty'}")
    assert "has no column of class labels, only image" in refused(f"imagefolder:{folders / 'train' / 'class 0'}")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "train.csv").write_text("text,label\na,0\n")
    assert "has no column of images, only text, label" in refused(f"hf:{tmp_path / 'table'}")
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(folders / "train" / "class 1" / "odd.png")
    assert "images are of several sizes, and the model has no preprocessing" in refused(f"imagefolder:{folders}")
    (folders / "train").rename(folders / "validation")
    assert "has no split 'train', only " in refused(f"imagefolder:{folders}")


def test_a_damaged_picture(folders: Path) -> None:
    (folders / "train" / "class 1" / "bad.png").write_bytes(b"no picture")
    assert "bad.png" in refused(f"imagefolder:{folders}")


def test_preprocessing_that_does_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    model = processor(tmp_path / "model", "resnet")
    call = ConvNextImageProcessorPil.__call__

    def squared(self: Any, *args: Any, **options: Any) -> Any:
        made = call(self, *args, **options)
        return {"pixel_values": made["pixel_values"] ** 2} if options.keys() == {"return_tensors"} else made

    monkeypatch.setattr(ConvNextImageProcessorPil, "__call__", squared)
    with pytest.raises(DataError, match="does more than resize, crop and normalise; give float32 images"):
        preprocessing_of(model)


def test_models_without_a_configuration_have_no_preprocessing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert preprocessing_of(f"hf:{tmp_path}") is None
    assert preprocessing_of("resnet20") is None
    assert preprocessing_of(None) is None
    assert os.environ.get("HF_HUB_OFFLINE") is None, "nothing is left behind"
