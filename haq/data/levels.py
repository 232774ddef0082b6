"""Picture files of any kind as grey or RGB levels.

Pictures are read as training pipelines read them, with Pillow's `convert("RGB")`: palettes become colours and
transparency is dropped. There are two differences. Pictures are turned upright if the camera noted how it was held
(EXIF). 16-bit grey keeps its levels, which `convert` would clip at 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEEP", "alike", "as_bytes", "opened"]

DEEP = "I;16"
"""Pillow's mode for 16-bit grey."""

_GREY = ("1", "L", "LA", "La")
_SCALE = 257  # 65535 / 255: an 8-bit level written in 16 bits is a multiple of it
_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose pictures of mode I (32 bits) hold 16-bit levels


def opened(path: str | None, content: bytes | None, mode: str | None = None) -> tuple[Any, frozenset[str]]:
    """Opens a picture.

    Args:
        path: Path of the picture file.
        content: Bytes of the file, if they are already in memory; `path` is then not read.
        mode: Pillow mode that the data set asks for, if any.

    Returns:
        The picture in mode `L`, `RGB` or `DEEP`, the last only if 8 bits cannot hold its levels; and what was lost.

    Raises:
        OSError: The file is damaged.
        ValueError: The picture's mode does not define black and white.
    """
    from PIL import Image, ImageOps

    with Image.open(BytesIO(content) if content else path or "") as file:
        stored = str(file.tile)  # Pillow drops it on loading
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
            f"pictures of mode {picture.mode} (32 bits) do not define which value is white; save them with 8 or 16 "
            "bits, or give float32 images in npz:FOLDER"
        )
    if ";16" in stored:
        lost.add("have 16 bits per colour; only the upper 8 are read")
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA" if picture.mode not in _GREY else "LA")
        if picture.getchannel("A").getextrema()[0] < 255:
            lost.add("have transparency, which is dropped; the colours under it are used")
    return picture.convert("L" if picture.mode in _GREY else "RGB"), frozenset(lost)


def as_bytes(picture: Any) -> Any:
    """Returns a picture of mode `DEEP` in mode `L`, and any other picture unchanged."""
    from PIL import Image

    if picture.mode != DEEP:
        return picture
    return Image.fromarray(np.rint(np.asarray(picture, np.float64) / _SCALE).astype(np.uint8))


def alike(pictures: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Returns uint8 or uint16 arrays `(N, H, W, C)`, brought to the same number of channels and the same depth.

    If one is in colour, grey becomes three equal channels. If one has 16 bits, 8-bit levels become multiples of 257.
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
