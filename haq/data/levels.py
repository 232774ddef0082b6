"""Picture files of any kind as grey or RGB levels.

Pictures are read as loaders of training pipelines do it, by Pillow's `convert("RGB")`: palettes become colours and
transparency is dropped. Two things are done otherwise. Pictures stand upright, as the camera noted (EXIF). Grey of 16
bits keeps its levels, which `convert` would clip at 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEEP", "alike", "as_bytes", "opened"]

DEEP = "I;16"
"""Pillow's mode of grey in 16 bits."""

_GREY = ("1", "L", "LA", "La")
_SCALE = 257  # 65535 / 255: an 8-bit level, written in 16 bits, is a multiple of it
_SIXTEEN_BITS = ("PNG", "PPM")  # where mode I, of 32 bits, holds 16


def opened(path: str | None, content: bytes | None, mode: str | None = None) -> tuple[Any, frozenset[str]]:
    """Opens a picture.

    Args:
        path: Of its file.
        content: Of its file, where that is at hand.
        mode: Pillow's, where the data set asks for one.

    Returns:
        The picture in mode `L`, `RGB` or `DEEP`, the last only where 8 bits do not hold its levels; and what was lost.

    Raises:
        OSError: It is damaged.
        ValueError: Its values have no levels of black and white.
    """
    from PIL import Image, ImageOps

    with Image.open(BytesIO(content) if content else path or "") as file:
        stored = str(file.tile)  # gone as soon as it is loaded
        form = file.format
        file.load()
    picture: Any = ImageOps.exif_transpose(file)
    if mode:
        picture = picture.convert(mode)
    lost = set()
    if picture.mode.startswith("I;16") or (picture.mode == "I" and form in _SIXTEEN_BITS):
        return _grey(picture), frozenset()
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"pictures of mode {picture.mode} (32 bits) do not say what is white; save it with 8 or 16 bits, or give "
            "float32 images in npz:FOLDER"
        )
    if ";16" in stored:
        lost.add("have 16 bits a colour, of which the upper 8 are read")
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA" if picture.mode not in _GREY else "LA")
        if picture.getchannel("A").getextrema()[0] < 255:
            lost.add("have transparency, which is dropped: what lies under it counts")
    return picture.convert("L" if picture.mode in _GREY else "RGB"), frozenset(lost)


def as_bytes(picture: Any) -> Any:
    """Returns a picture of mode `DEEP` in mode `L`, and any other as it is."""
    from PIL import Image

    if picture.mode != DEEP:
        return picture
    return Image.fromarray(np.rint(np.asarray(picture, np.float64) / _SCALE).astype(np.uint8))


def alike(pictures: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Returns arrays `(N, H, W, C)` of uint8 or uint16 with the same channels and depth, whatever each had.

    Grey beside colour becomes three equal channels; 8 bits beside 16 become multiples of 257.
    """
    channels = max(x.shape[-1] for x in pictures)
    deep = any(x.dtype == np.uint16 for x in pictures)
    same = [np.repeat(x, channels, -1) if x.shape[-1] < channels else x for x in pictures]
    return [x.astype(np.uint16) * np.uint16(_SCALE) if deep and x.dtype == np.uint8 else x for x in same]


def _grey(picture: Any) -> Any:
    from PIL import Image

    levels = np.asarray(picture).astype(np.uint16)
    if (levels % _SCALE).any():
        return Image.fromarray(levels)
    return Image.fromarray((levels // _SCALE).astype(np.uint8))
