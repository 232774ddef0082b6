import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from haq.data import Images, get_data
from haq.errors import DataError


def write(folder: Path, **changed: Any) -> str:
    """Writes a valid data folder with the given changes (`train_x`, `test_y`, …); `None` leaves an array out."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 12)):
        arrays = {"x": rng.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8), "y": np.arange(count) % 4}
        arrays |= {key[len(part) + 1 :]: value for key, value in changed.items() if key.startswith(part + "_")}
        np.savez(folder / f"{part}.npz", **{key: value for key, value in arrays.items() if value is not None})
    return f"npz:{folder}"


def test_digits_split_is_disjoint_stratified_and_stable() -> None:
    one, other = get_data("digits", 1000, seed=0), get_data("digits", 50, seed=9)
    assert [len(part) for part in (one.train, one.val, one.test)] == [1077, 269, 451]
    for part in ("train", "val", "test"):
        assert np.array_equal(getattr(one, part).x, getattr(other, part).x), "whatever the seed"
    counts = np.bincount(one.test.y)
    assert counts.max() - counts.min() <= 4
    x, y = one.train.batch([0, 1])
    assert (x.shape, x.dtype, y.dtype) == ((2, 1, 8, 8), torch.float32, torch.int64)
    assert float(x.min()) == -1.0


def test_validation_images_come_out_of_the_training_images(tmp_path: Path) -> None:
    data = get_data(write(tmp_path), 8, seed=1)
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (32, 8, 12, 4)
    assert np.bincount(data.val.y).tolist() == [2, 2, 2, 2]
    seen = {image.tobytes() for image in data.train.x}
    assert not seen & {image.tobytes() for image in data.val.x}
    again = get_data(f"npz:{tmp_path}", 8, seed=1)
    assert np.array_equal(data.val.x, again.val.x)
    assert not np.array_equal(data.val.x, get_data(f"npz:{tmp_path}", 8, seed=2).val.x)


def test_normalisation(tmp_path: Path) -> None:
    x = np.zeros((40, 4, 5, 3), np.uint8)
    image, _ = get_data(write(tmp_path, train_x=x), 8, seed=0).train.batch([0])
    assert image[0, :, 0, 0].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    own = write(tmp_path, train_x=x, train_mean=np.array([0.5, 0, 0]), train_std=np.array([0.5, 1, 1]))
    image, _ = get_data(own, 8, seed=0).train.batch([0])
    assert image[0, :, 0, 0].tolist() == [-1, 0, 0]
    floats = np.ones((40, 3, 4, 5), np.float32)
    image, _ = get_data(write(tmp_path, train_x=floats, test_x=floats[:12]), 8, seed=0).train.batch([0])
    assert image.unique().tolist() == [1]


def test_read_only_arrays_give_writable_batches_without_a_warning() -> None:
    x = np.zeros((4, 2, 2, 1), np.uint8)
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch, _ = Images(x, np.zeros(4, np.int64), (0.5,), (0.5,)).batch([0, 1])
    batch += 1


X = np.zeros((40, 4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_x": None}, "has no array 'x'"),
        ({"train_y": None}, "has no array 'y'"),
        ({"train_x": X.astype(np.int32)}, "x is int32"),
        ({"train_x": X[0]}, r"of shape \(4, 5, 3\)"),
        ({"train_x": X[:0], "train_y": np.zeros(0, int)}, "is empty"),
        ({"train_x": X[:39]}, "39 images but 40 labels"),
        ({"train_y": np.zeros(40)}, "y is float64"),
        ({"train_y": np.arange(40) - 1}, "label -1 is negative"),
        ({"train_y": np.zeros(40, int), "test_y": np.zeros(12, int)}, "at least two classes"),
        ({"test_y": np.full(12, 9)}, "test label 9 does not occur"),
        ({"test_x": X[:12, :2]}, "give both the same type and shape"),
        ({"train_x": np.full((40, 3, 2, 2), np.nan, np.float32)}, "NaN or infinite"),
        ({"train_x": np.zeros((40, 4, 5, 2), np.uint8)}, "no default normalisation for 2 channels; add arrays mean"),
        ({"train_mean": np.zeros(2), "train_std": np.ones(2)}, "mean and std must hold 3"),
        ({"train_mean": np.zeros(3)}, "mean and std must hold 3"),
        ({"train_mean": np.array(["a", "b", "c"]), "train_std": np.ones(3)}, "mean and std must hold 3"),
        ({"train_x": X[:4], "train_y": np.arange(4)}, "no class has two training images"),
        ({"train_x": np.array([{}] * 40, object)}, "without pickle"),
    ],
)
def test_bad_folders(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        get_data(write(tmp_path, **changed), 8, seed=0)
    assert "\n" not in str(error.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; it must hold train\.npz"):
        get_data(f"npz:{tmp_path / 'no'}", 8, seed=0)
    with pytest.raises(DataError, match=r"train\.npz' does not exist"):
        get_data(f"npz:{tmp_path}", 8, seed=0)
    (tmp_path / "train.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match="cannot read"):
        get_data(f"npz:{tmp_path}", 8, seed=0)
    with pytest.raises(DataError, match="did you mean 'digits'"):
        get_data("digit", 8, seed=0)


def test_code_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "d.py"
    file.write_text(
        "import numpy as np\n"
        "def load():\n"
        "    x, y = np.zeros((20, 1, 2, 2), np.float32), np.arange(20) % 2\n"
        "    return (x, y), (x, y)\n"
        "def wrong():\n    return 3\n"
        "def ragged():\n    return ([[1], [1, 2]], [0, 1]), ([[1]], [0])\n"
    )
    assert get_data(f"{file}:load", 4, seed=0).num_classes == 2
    with pytest.raises(DataError, match="must return"):
        get_data(f"{file}:wrong", 4, seed=0)
    with pytest.raises(DataError, match="not an array"):
        get_data(f"{file}:ragged", 4, seed=0)
