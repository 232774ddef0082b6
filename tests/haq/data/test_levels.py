from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haq.data import Images, get_data
from haq.data.levels import alike, as_bytes, opened
from haq.errors import DataError
from tests.tiny_transformers import digits_32

pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], -1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def read(path: Path) -> tuple[np.ndarray, list[str]]:
    picture, lost = opened(str(path), None)
    assert opened(None, path.read_bytes())[0].tobytes() == picture.tobytes()
    return np.asarray(picture), sorted(lost)


def transparent(colours: Any) -> Any:
    picture = colours.convert("RGBA")
    picture.putalpha(Image.fromarray(GREY))
    return picture


PICTURES = {
    "L.png": (lambda: Image.fromarray(GREY), GREY),
    "1.png": (lambda: Image.fromarray(GREY > 100), np.where(GREY > 100, 255, 0)),
    "LA.png": (lambda: Image.fromarray(np.stack([GREY, GREY * 0 + 255], -1), "LA"), GREY),
    "16 bits.png": (lambda: Image.fromarray(GREY * np.uint16(257)), GREY),
    "16 bits.tif": (lambda: Image.fromarray(GREY * np.uint16(257)), GREY),
    "16 bits, other end first.tif": (lambda: Image.fromarray((GREY * np.uint16(257)).astype(">u2")), GREY),
    "fine.png": (lambda: Image.fromarray(GREY * np.uint16(16)), GREY * np.uint16(16)),
    "RGB.png": (lambda: Image.fromarray(COLOUR), COLOUR),
    "RGBA.png": (lambda: Image.fromarray(COLOUR).convert("RGBA"), COLOUR),
    "P.png": (lambda: Image.fromarray(COLOUR).quantize(16), COLOUR),
    "P.gif": (lambda: Image.fromarray(COLOUR).quantize(16), COLOUR),
    "CMYK.tif": (lambda: Image.fromarray(COLOUR).convert("CMYK"), COLOUR),
    "YCbCr.tif": (lambda: Image.fromarray(COLOUR).convert("YCbCr"), COLOUR),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_levels_of_every_kind_of_picture(name: str, tmp_path: Path) -> None:
    make, expected = PICTURES[name]
    make().save(tmp_path / name)
    levels, lost = read(tmp_path / name)
    assert not lost
    assert levels.dtype == (np.uint16 if name == "fine.png" else np.uint8)
    np.testing.assert_allclose(levels, expected, atol=4 if name == "YCbCr.tif" else 0)


@pytest.mark.parametrize("name", ["RGBA.png", "P.png", "LA.png", "key.png"])
def test_colours_under_transparency_are_used_and_reported(name: str, tmp_path: Path) -> None:
    """As with `convert("RGB")`, which torchvision's `pil_loader` calls."""
    if name == "P.png":
        Image.fromarray(COLOUR).quantize(16).save(tmp_path / name, transparency=bytes(range(0, 240, 20)))
    elif name == "key.png":
        Image.fromarray(COLOUR).save(tmp_path / name, transparency=tuple(COLOUR[1, 1].tolist()))
    else:
        transparent(Image.fromarray(COLOUR)).convert(name[:-4]).save(tmp_path / name)
    levels, lost = read(tmp_path / name)
    assert lost == ["have transparency, which is dropped; the colours under it are used"]
    expected = np.asarray(Image.fromarray(COLOUR).convert("L")) if name == "LA.png" else COLOUR
    np.testing.assert_array_equal(levels, expected)


def test_pictures_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.fromarray(COLOUR).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "turned.png")[0], np.rot90(COLOUR, -1))


@pytest.mark.parametrize(("values", "mode"), [(GREY.astype(np.int32) * 1000, "I"), (GREY / np.float32(255), "F")])
def test_values_without_a_white_are_refused(values: np.ndarray, mode: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "values.tif")
    with pytest.raises(
        ValueError, match=rf"mode {mode} \(32 bits\) do not define which value is white; save them with 8 or 16 bits"
    ):
        read(tmp_path / "values.tif")


def test_sixteen_bits_per_colour_are_reported(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in COLOUR)  # Pillow writes no such files
    header = struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    levels, lost = read(tmp_path / "deep.png")
    assert lost == ["have 16 bits per colour; only the upper 8 are read"]
    np.testing.assert_array_equal(levels, COLOUR)


def test_arrays_become_alike() -> None:
    grey, colour = GREY[None, ..., None], COLOUR[None]
    np.testing.assert_array_equal(alike([grey, colour])[0], np.stack([GREY] * 3, -1)[None])
    deep, shallow = alike([grey.astype(np.uint16) * 16, grey])
    np.testing.assert_array_equal(deep, grey.astype(np.uint16) * 16)
    np.testing.assert_array_equal(shallow, grey.astype(np.uint16) * 257)
    rounded = as_bytes(Image.fromarray(GREY.astype(np.uint16) * 257 + 100))
    np.testing.assert_array_equal(np.asarray(rounded), GREY)


# Folders of pictures


def folder_of(make: Any, tmp_path: Path) -> Path:
    """Writes digits by class, 60 for training and 20 for testing; `make` turns number and levels into a picture."""
    x, y = digits_32(80)
    for number, (picture, label) in enumerate(zip(x[..., 0], y % 4, strict=True)):
        folder = tmp_path / "pictures" / ("train" if number < 60 else "test") / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        make(number, picture).save(folder / f"{number:03}.png")
    return tmp_path / "pictures"


def batches(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    data = get_data(f"imagefolder:{folder}", 8, 0)
    assert isinstance(data.train, Images)
    return tuple(split.batch(range(len(split)))[0].numpy() for split in (data.train, data.test))  # type: ignore[return-value]


def same(number: int, levels: np.ndarray) -> Any:
    return Image.fromarray(levels)


@pytest.mark.parametrize("mixed", [False, True])
def test_sixteen_bits_are_read_as_eight_where_they_say_the_same(mixed: bool, tmp_path: Path) -> None:
    def deep(number: int, levels: np.ndarray) -> Any:
        return Image.fromarray(levels if mixed and number % 3 else levels * np.uint16(257))

    expected = batches(folder_of(same, tmp_path / "8"))
    for found, wanted in zip(batches(folder_of(deep, tmp_path / "16")), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_levels_that_8_bits_do_not_hold_are_kept(tmp_path: Path) -> None:
    """As from a 12-bit detector: 255 becomes 4095 of 65535, and 8-bit pictures in the same folder keep their white."""

    def fine(number: int, levels: np.ndarray) -> Any:
        return Image.fromarray(levels if number % 2 else levels * np.uint16(16) + np.uint16(1))

    expected = batches(folder_of(same, tmp_path / "8"))
    for found, wanted in zip(batches(folder_of(fine, tmp_path / "12")), expected, strict=True):
        assert found.shape == wanted.shape
        assert found.dtype == np.float32
        levels = (wanted + 1) * (255 / 2)
        for kept, eight in zip((found + 1) * (65535 / 2), levels, strict=True):
            one_of = [eight * 257, eight * 16 + 1]
            assert min(np.abs(kept - option).max() for option in one_of) < 0.01


@pytest.mark.parametrize("grey", [0, 1])
def test_grey_beside_colour_becomes_colour(grey: int, tmp_path: Path) -> None:
    def mixed(number: int, levels: np.ndarray) -> Any:
        return Image.fromarray(levels if number % 2 == grey else np.stack([levels, levels // 2, 255 - levels], -1))

    for x in batches(folder_of(mixed, tmp_path)):
        assert x.shape[1:] == (3, 32, 32)
        pixels = np.rint((x * [[[[0.229]], [[0.224]], [[0.225]]]] + [[[[0.485]], [[0.456]], [[0.406]]]]) * 255)
        neutral = (pixels[:, 0] == pixels[:, 2]).all((1, 2))
        assert 0 < neutral.sum() < len(x)
        assert (pixels[neutral, 0] == pixels[neutral, 1]).all()


def test_colour_in_one_split_alone(tmp_path: Path) -> None:
    def mixed(number: int, levels: np.ndarray) -> Any:
        return Image.fromarray(levels if number < 60 else np.stack([levels] * 3, -1))

    assert [x.shape[1] for x in batches(folder_of(mixed, tmp_path))] == [3, 3]


def test_losses_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches(folder_of(lambda number, levels: transparent_in_part(number, levels), tmp_path))
    reported = [record.getMessage() for record in caplog.records if "transparency" in record.getMessage()]
    assert len(reported) == 2
    assert "(train): 20 of 60 images have transparency, which is dropped" in reported[0]


def transparent_in_part(number: int, levels: np.ndarray) -> Any:
    alpha = levels // 2 if number % 3 == 0 else levels * 0 + 255
    return Image.fromarray(np.stack([levels, levels, levels, alpha], -1).astype(np.uint8), "RGBA")


def test_a_network_with_its_own_preprocessing_gets_8_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import json

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "vit"}))
    size = {"height": 32, "width": 32}
    options = {
        "image_processor_type": "ViTImageProcessor",
        "size": size,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (model / "preprocessor_config.json").write_text(json.dumps(options))
    folder = folder_of(lambda number, levels: Image.fromarray(levels * np.uint16(256)), tmp_path)
    found = get_data(f"imagefolder:{folder}", 8, 0, f"hf:{model}").train.x
    expected = get_data(f"imagefolder:{folder_of(same, tmp_path / '8')}", 8, 0, f"hf:{model}").train.x
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert "(train): 60 of 60 images have 16 bits and are rounded to 8" in caplog.text


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = folder_of(same, tmp_path)
    Image.fromarray(np.zeros((32, 32), np.float32)).save(folder / "train" / "class 1" / "odd.tif")
    with pytest.raises(DataError, match=r"'odd.tif': pictures of mode F \(32 bits\) do not define which"):
        batches(folder)
    (folder / "train" / "class 1" / "odd.tif").unlink()
    for path in (folder / "test").glob("*/*.png"):
        Image.open(path).resize((30, 30)).save(path)
    with pytest.raises(DataError, match="images are of several sizes"):
        batches(folder)
