import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from haq.data import IGNORED, Images, Samples, get_data
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


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4", np.int8, np.int32, np.uint16, np.int64])
@pytest.mark.parametrize("shape", [(6,), (1, 16), (2, 3, 3), (2, 3, 3, 3)])
def test_arrays_of_any_rank_become_float32_or_int64(tmp_path: Path, kind: Any, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 90, (40, *shape)).astype(kind)
    samples = get_data(write(tmp_path, train_x=x, test_x=x[:12]), 8, seed=0).test
    batch, y = samples.batch([3, 5])
    floating = np.issubdtype(x.dtype, np.floating)
    assert (batch.dtype, y.dtype) == (torch.float32 if floating else torch.int64, torch.int64)
    assert np.array_equal(batch.numpy(), x[[3, 5]])
    assert isinstance(samples, Images) == (floating and len(shape) == 3), "run folders have fingerprints of images"


def test_tensors_of_half_precision_and_data_sets_of_them() -> None:
    x, y = torch.rand(40, 7).bfloat16(), torch.arange(40) % 2
    for data in (((x, y), (x, y)), (TensorDataset(x, y), TensorDataset(x, y))):
        found = get_data(data, 8, 0)
        assert np.array_equal(found.test.x, x.float().numpy())
        assert np.array_equal(found.test.y, y.numpy())


def labels_of_positions(count: int) -> NDArray[np.int64]:
    y = np.random.default_rng(1).integers(0, 5, (count, 6))
    y[1:, 4:] = IGNORED
    return y


def test_labels_at_every_position(tmp_path: Path) -> None:
    y = labels_of_positions(40)
    y[0, 0] = 7
    x = np.arange(40 * 6).reshape(40, 6)
    data = get_data(write(tmp_path, train_x=x, test_x=x[1:13], train_y=y, test_y=y[1:13]), 8, seed=0)
    assert (len(data.train), len(data.val), data.num_classes) == (32, 8, 8)
    assert data.test.answers == 12 * 4
    assert {*data.train.x[:, 0], *data.val.x[:, 0]} == set(x[:, 0]), "each sample is in one of them"
    again, other = (get_data(f"npz:{tmp_path}", 8, seed=seed).val.x for seed in (0, 1))
    assert np.array_equal(data.val.x, again)
    assert not np.array_equal(data.val.x, other)


def test_a_data_set_with_labels_at_every_position_is_padded_by_its_owner() -> None:
    y = labels_of_positions(40)
    pairs = TensorDataset(torch.rand(40, 6, 3), torch.from_numpy(y))
    assert np.array_equal(get_data((pairs, pairs), 8, 0).test.y, y)

    class Ragged(torch.utils.data.Dataset[Any]):
        def __init__(self, x: int, y: int) -> None:
            self.x, self.y = x, y

        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Any:
            return np.zeros(3 + self.x * index), np.zeros(3 + self.y * index, int)

    for what, ragged in (("x", Ragged(1, 0)), ("labels", Ragged(0, 1))):
        with pytest.raises(DataError, match=rf"{what} of samples have several shapes, such as \(3,\) and \(8,\); pad"):
            get_data((ragged, ragged), 2, 0)


def test_batches_are_small_if_samples_have_many_answers() -> None:
    x = np.zeros((100, 1024), np.int64)
    assert Samples(x, x % 4).fitting(64) == 64
    assert Samples(x, x + 1023).fitting(64) == 16
    assert Samples(x, x + 2**30).fitting(64) == 1


X = np.zeros((40, 4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_x": None}, "has no array 'x'"),
        ({"train_y": None}, "has no array 'y'"),
        ({"train_x": X.astype(np.complex64)}, r"x is complex64 of shape .*; x must be uint8 images \(N, H, W, C\), or"),
        ({"train_x": X > 0}, "x is bool .*; convert it to float32, or to int64"),
        ({"train_x": X[0]}, r"x is uint8 of shape \(4, 5, 3\), and uint8 is for images .* or tokens to int64"),
        ({"train_x": np.zeros(40)}, r"x is float64 of shape \(40,\); .*: give x\[:, None\] for one value a sample"),
        ({"train_x": np.full((40, 2), 1e300)}, "x has values beyond the range of float32"),
        ({"train_x": np.full((40, 2), 2**63, np.uint64)}, "x has the value 9223372036854775808, which is beyond int64"),
        ({"train_x": X[:0], "train_y": np.zeros(0, int)}, "is empty"),
        ({"train_x": X[:39]}, "39 samples but labels for 40"),
        ({"train_y": np.zeros(40)}, "y is float64"),
        ({"train_y": np.arange(40) - 1}, "label -1 is negative"),
        ({"train_y": np.full(40, 2**63, np.uint64)}, "y has the value 9223372036854775808"),
        ({"train_y": np.zeros((40, 1), int)}, r"y is int64 of shape \(40, 1\); .* or \(N, T\) for a label at each"),
        ({"train_y": np.zeros((40, 2, 2), int)}, r"y is int64 of shape \(40, 2, 2\)"),
        ({"train_y": np.zeros((40, 0), int)}, r"y of shape \(40, 0\) is empty"),
        (
            {"train_y": np.arange(80).reshape(40, 2) - 1},
            "label -1 is negative; .* -100 marks a position without",
        ),
        ({"train_y": np.where(np.eye(40, 3), 1, -100)}, "all labels of sample 3 are -100, so it has none"),
        ({"train_y": np.zeros((40, 2), int), "test_y": np.zeros((12, 2), int)}, "all training labels are 0"),
        (
            {"train_y": np.ones((40, 2), int)},
            r"y of a training sample is int64 \(2,\), but of a test sample int64",
        ),
        ({"train_y": np.zeros(40, int), "test_y": np.zeros(12, int)}, "at least two classes"),
        ({"test_y": np.full(12, 9)}, "test label 9 does not occur"),
        ({"test_x": X[:12, :2]}, "give both the same type and shape"),
        ({"train_x": np.full((40, 3, 2, 2), np.nan, np.float32)}, "NaN or infinite"),
        ({"train_x": np.zeros((40, 4, 5, 2), np.uint8)}, "no default normalisation for 2 channels; add arrays mean"),
        ({"train_mean": np.zeros(2), "train_std": np.ones(2)}, "mean and std must hold 3"),
        ({"train_mean": np.zeros(3)}, "mean and std must hold 3"),
        ({"train_mean": np.array(["a", "b", "c"]), "train_std": np.ones(3)}, "mean and std must hold 3"),
        ({"train_x": X[:4], "train_y": np.arange(4)}, "no class has two training samples"),
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
