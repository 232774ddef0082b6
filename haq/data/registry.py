"""Data sets by name or prefix."""

from __future__ import annotations

from typing import Any

from haq.data.arrays import read_function, read_npz, taken
from haq.data.digits import read_digits
from haq.data.pictures import read_pictures
from haq.data.samples import ImageData
from haq.data.splitting import VAL_SHARE, Splits, hold_out
from haq.data.text import read_text
from haq.errors import DataError, did_you_mean
from haq.io.prefixes import refuse_object, source_of
from haq.io.user_code import is_reference

__all__ = ["get_data"]


def get_data(spec: Any, val_images: int, seed: int, model: Any = None) -> ImageData:
    """Loads a data set and holds out validation samples.

    Args:
        spec: `digits`; `npz:FOLDER` with `train.npz` and `test.npz` (`x`, `y`, and optionally `mean` and `std` in
            `train.npz`); `file.py:function`, which is run and returns `((x_train, y_train), (x_test, y_test))`;
            `imagefolder:DIR` or `hf:NAME_OR_FOLDER`, see `read_pictures`; or `text:FILE`, see `read_text`. Or the data
            itself: what such a function returns, a pair of `torch.utils.data.Dataset`, or `ImageData`.
        val_images: Approximate number of training samples to hold out; at most a fifth of every class, but at least one
            image of each class that has several.
        seed: Determines which samples are held out; `digits` has a fixed split, because its float network must not
            have seen the validation images.
        model: The model for the data, as in `haq.models.load_model`; if it is a name, its preprocessing or tokenizer
            is used.

    Raises:
        DataError: The data is missing or malformed. Nothing is unpickled.
    """
    if isinstance(spec, ImageData):
        return spec
    if isinstance(spec, str):
        splits, name = _splits(spec, val_images, seed, model if isinstance(model, str) else None), spec
    else:
        splits, name = taken(spec), "the data given as an object"
    train, val = splits.train, splits.val
    if val is None:
        train, val = hold_out(train, min(val_images, max(1, int(VAL_SHARE * len(train)))), seed)
    if not len(val):
        raise DataError(f"{name}: no class has two training samples, so none can be held out for validation; add some")
    return ImageData(name, train, val, splits.test, splits.num_classes)


def _splits(spec: str, val_images: int, seed: int, model: str | None) -> Splits:
    if spec == "digits":
        return read_digits()
    refuse_object("data", spec, DataError)
    source, _ = source_of(spec)
    if source == "npz":
        return read_npz(spec)
    if source == "text":
        return read_text(spec, val_images, model)
    if source in ("hf", "imagefolder"):
        return read_pictures(spec, val_images, seed, model)
    if not source and is_reference(spec):
        return read_function(spec)
    raise DataError(
        f"unknown data {spec!r}{did_you_mean(spec, ['digits'])}; use digits, npz:FOLDER, imagefolder:DIR, "
        "hf:NAME_OR_FOLDER, text:FILE or file.py:function"
    )
