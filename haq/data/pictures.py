"""Labelled pictures read with Hugging Face's `datasets`: from the hub, a saved folder, or folders of image files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.data.checking import checked_samples, default_statistics
from haq.data.levels import DEEP, alike, as_bytes, opened
from haq.data.preprocessing import Preprocessing, preprocessing_of
from haq.data.samples import Samples
from haq.data.splitting import VAL_SHARE, Splits, hold_out
from haq.errors import DataError
from haq.io.prefixes import hugging_face, one_line, source_of

__all__ = ["read_pictures"]

logger = logging.getLogger(__name__)

_NAMES = {"train": ("train", "training"), "val": ("validation", "valid", "val", "dev"), "test": ("test", "testing")}
_MOST_BYTES = 2**31  # that a split may take in memory
_CHUNK = 64  # pictures read at a time


def read_pictures(spec: str, val_images: int, seed: int, model: str | None) -> Splits:
    """Reads `hf:NAME_OR_FOLDER` or `imagefolder:DIR` into memory, preprocessed as the model's configuration says.

    The data set's own splits are used. If it has no labelled test split, half of the validation images become the test
    split; if there are no validation images either, a fifth of the training images, the same for every seed. If a split
    does not fit into 2 GiB, a random part of it is read.

    Args:
        spec: What to read.
        val_images: Approximate number of images to use from a validation split.
        seed: Seed for choosing those images.
        model: Model that the images are for, as in `haq.models.load_model`; its preprocessing is used.

    Raises:
        DataError: The data or the model's preprocessing cannot be read, or there are no images or labels.
    """
    name = source_of(spec)[1]
    preprocessing = preprocessing_of(model)
    found = _found(spec, name)
    columns = next(iter(found.values())).features
    if not (image := [key for key, kind in columns.items() if type(kind).__name__ == "Image"]):
        raise DataError(f"data {spec!r} has no column of images, only {', '.join(columns)}; give another data set")
    label, classes = _label(spec, columns)
    splits = dict(_parts(spec, found, label))
    read = {part: _pixels(spec, split, image[0], label, preprocessing) for part, split in splits.items()}
    pixels = alike([x for x, _ in read.values()])
    _check_sizes(spec, [x.shape[1:3] for x in pixels])
    parts = {
        part: _images(f"{spec} ({part})", x, y, preprocessing)
        for (part, (_, y)), x in zip(read.items(), pixels, strict=True)
    }
    train, val, test = parts["train"], parts.get("val"), parts.get("test")
    classes = classes or int(max(part.y.max() for part in parts.values())) + 1
    if preprocessing is None:
        height, width, channels = pixels[0].shape[1:]
        logger.warning(
            "model %r has no preprocessing: images keep their size, %d × %d, and are normalised with %s",
            model, height, width, "ImageNet's statistics" if channels == 3 else "0.5",
        )  # fmt: skip
    if test is None and val is not None:
        val, test = hold_out(val, len(val) // 2, seed=0)
        logger.warning("data %r has no labelled test split: testing on %d of the validation images", spec, len(test))
    elif test is None:
        train, test = hold_out(train, int(VAL_SHARE * len(train)), seed=0)
        logger.warning("data %r has no labelled test split: testing on %d of the training images", spec, len(test))
    if not len(test):
        raise DataError(f"{spec}: no class has two images, so none can be held out for testing; add some")
    if val is not None and len(val) > val_images:
        val = hold_out(val, val_images, seed)[1]
    return Splits(train, val, test, classes)


def _found(spec: str, name: str) -> Mapping[str, Any]:
    """Returns the splits by name."""
    folder = Path(name)
    if spec.startswith("imagefolder:"):
        fix = "give folders of images by class, train/CLASS/… and test/CLASS/…"
        if not os.path.isdir(folder):
            raise DataError(f"data folder {name!r} does not exist; {fix}")
        with hugging_face("datasets", f"data {spec!r}", name, DataError, fix) as datasets:
            found: Mapping[str, Any] = datasets.load_dataset("imagefolder", data_dir=name)
        return found
    fix = "give the hub name or folder of a data set with images and labels"
    with hugging_face("datasets", f"data {spec!r}", name, DataError, fix) as datasets:
        saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
        read = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
        return read if isinstance(read, Mapping) else {"train": read}


def _label(spec: str, columns: Mapping[str, Any]) -> tuple[str, int | None]:
    """Returns the name of the column with class indices, and the number of classes if it is known."""
    named = [key for key, kind in columns.items() if type(kind).__name__ == "ClassLabel"]
    numbered = [key for key in ("label", "labels") if "int" in str(getattr(columns.get(key), "dtype", ""))]
    if not (chosen := sorted(named, key=lambda key: key not in ("label", "labels")) or numbered):
        raise DataError(
            f"data {spec!r} has no column of class labels, only {', '.join(columns)}; name a column of integers 'label'"
        )
    if len(named) > 1:
        logger.warning("data %r has several label columns, %s: using %r", spec, ", ".join(named), chosen[0])
    return chosen[0], getattr(columns[chosen[0]], "num_classes", None)


def _parts(spec: str, found: Mapping[str, Any], label: str) -> Iterable[tuple[str, Any]]:
    """Yields the splits for `train`, `val` and `test`; a split whose labels are hidden (−1) is left out."""
    for part, names in _NAMES.items():
        split = next((found[name] for name in names if name in found), None)
        if split is not None and (part == "train" or (len(split) and min(split[label]) >= 0)):
            yield part, split
        elif part == "train":
            raise DataError(f"data {spec!r} has no split 'train', only {', '.join(found)}; rename one")


def _pixels(
    spec: str, split: Any, image: str, label: str, preprocessing: Preprocessing | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Reads a split, or as much of it as `_MOST_BYTES` allows: levels `(N, H, W, C)` and labels `(N,)`."""
    where = f"{spec} ({split.split or 'train'})"
    if not len(split):
        raise DataError(f"{where} is empty; add images")
    kind = split.features[image]
    files = split.cast_column(image, type(kind)(decode=False))
    losses: Counter[str] = Counter()
    sizes: set[tuple[int, int]] = set()

    def pixels(rows: slice) -> NDArray[Any]:
        pictures = []
        for file in files[rows][image]:
            try:
                picture, lost = opened(file["path"], file["bytes"], kind.mode)
            except Exception as failure:  # PIL raises many kinds of errors
                name = Path(file["path"] or "").name
                raise DataError(
                    f"{where}: {name and repr(name) + ': '}{one_line(failure)}; remove that image"
                ) from None
            pictures.append(picture)
            losses.update(lost)
        if preprocessing is not None:
            losses["have 16 bits and are rounded to 8"] += sum(picture.mode == DEEP for picture in pictures)
            mode = "L" if len(preprocessing.mean) == 1 else "RGB"
            return preprocessing.shape([as_bytes(picture).convert(mode) for picture in pictures])
        sizes.update(picture.size for picture in pictures)
        _check_sizes(where, sizes)
        return np.concatenate(alike([np.asarray(p).reshape(1, p.height, p.width, -1) for p in pictures]))

    first = pixels(slice(1))
    most = max(1, _MOST_BYTES // (first.size * (1 if first.dtype == np.uint8 else 4)))  # 16 bits become float32
    if len(split) > most:
        logger.warning("%s: reading only %d of %d images, which fit into 2 GiB of memory", where, most, len(split))
        chosen = np.sort(np.random.default_rng(0).permutation(len(split))[:most])
        split, files = split.select(chosen), files.select(chosen)
    losses.clear()
    chunks = alike([pixels(slice(start, start + _CHUNK)) for start in range(0, len(split), _CHUNK)])
    for lost, count in losses.items():
        if count:
            logger.warning("%s: %d of %d images %s", where, count, len(split), lost)
    return np.concatenate(chunks), np.asarray(split[label])


def _check_sizes(where: str, sizes: Collection[tuple[int, ...]]) -> None:
    if len(set(sizes)) > 1:
        raise DataError(
            f"{where}: images are of several sizes, and the model has no preprocessing; resize them, or give a model "
            "hf:… with preprocessor_config.json"
        )


def _images(where: str, x: NDArray[Any], y: NDArray[Any], preprocessing: Preprocessing | None) -> Samples:
    if preprocessing is not None:
        return checked_samples(x, y, preprocessing.mean, preprocessing.std, where)
    if x.dtype == np.uint8:
        return checked_samples(x, y, None, None, where)
    mean, std = (np.array(values, np.float32) for values in default_statistics(x.shape[3]))
    normalised = (x.astype(np.float32) / 65535 - mean) / std
    return checked_samples(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)), y, None, None, where)
