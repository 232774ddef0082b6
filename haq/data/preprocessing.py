"""Preprocessing that brings pictures of any size to the form that a pretrained network was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from haq.errors import DataError
from haq.io.prefixes import hugging_face, need, source_of

__all__ = ["Preprocessing", "preprocessing_of"]

Pixels = NDArray[np.uint8]

_CLOSE = 0.02  # standard deviations: more than rounding to whole grey levels causes


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing from a network's own configuration.

    Attributes:
        shape: Resizes and crops PIL images, which have as many channels as `mean`, to uint8 `(N, H, W, C)`.
        mean: `(C,)`, subtracted from the pixels after division by 255.
        std: `(C,)`; the pixels are divided by it last.
    """

    shape: Callable[[Sequence[Any]], Pixels]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def preprocessing_of(model: str | None) -> Preprocessing | None:
    """Returns a model's preprocessing, or `None` if it has no configuration for it.

    Args:
        model: As in `haq.models.load_model`.

    Raises:
        DataError: The configuration cannot be read, or does more than resize, crop and normalise.
    """
    source, name = source_of(model or "")
    if source == "hf":
        return _of_transformers(name)
    if source == "timm":
        timm = need("timm", "timm", f"model {model!r}", DataError)
        config = timm.get_pretrained_cfg(name)
        if config is None:
            return None
        size = config.input_size[-1]
        return Preprocessing(
            _Shaper(round(size / config.crop_pct), size, config.interpolation), config.mean, config.std
        )
    if source == "torchvision":
        models = need("torchvision", "torchvision", f"model {model!r}", DataError).models
        if name not in models.list_models(module=models):
            return None  # loading the model reports the wrong name
        own = models.get_model_weights(name).DEFAULT.transforms()
        shaper = _Shaper(own.resize_size[0], own.crop_size[0], own.interpolation.value)
        return Preprocessing(shaper, tuple(own.mean), tuple(own.std))
    return None


@dataclass(frozen=True)
class _Shaper:
    """Resizes the shorter side to `resize` pixels, then crops a square of `crop` pixels from the middle."""

    resize: int
    crop: int
    interpolation: str

    def __call__(self, pictures: Sequence[Any]) -> Pixels:
        from PIL import Image

        shaped = []
        for picture in pictures:
            share = self.resize / min(picture.size)
            width, height = (round(side * share) for side in picture.size)
            left, top = (width - self.crop) // 2, (height - self.crop) // 2
            resized = picture.resize((width, height), Image.Resampling[self.interpolation.upper()])
            shaped.append(np.asarray(resized.crop((left, top, left + self.crop, top + self.crop))))
        return np.stack(shaped)


def _of_transformers(name: str) -> Preprocessing | None:
    asked = f"the preprocessing of model 'hf:{name}'"
    fix = "give a folder that holds config.json and preprocessor_config.json"
    with hugging_face("transformers", asked, name, DataError, fix) as transformers:
        try:
            # The PIL backend, because torchvision may not load with every PyTorch
            processor = transformers.AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
        except (OSError, ValueError) as failure:
            if "preprocessor_config.json" in str(failure) or "image processor" in str(failure):
                return None
            raise
        return _equivalent(processor, asked)


def _equivalent(processor: Any, asked: str) -> Preprocessing:
    """Keeps only the processor's geometry and does the arithmetic later, so that pictures are kept as bytes.

    The mean and standard deviation follow from the processor's outputs for black and for white, whatever options
    lead to them.
    """
    from PIL import Image

    # The last one is a second division, in EfficientNet's processor
    geometry = {key: False for key in ("do_rescale", "do_normalize", "include_top") if hasattr(processor, key)}

    def shape(pictures: Sequence[Any]) -> Pixels:
        made = processor(list(pictures), return_tensors="np", **geometry)["pixel_values"]
        return cast(Pixels, np.rint(made).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))

    grey = np.size(processor.image_mean) == 1 and processor.image_mean is not None
    levels = np.add.outer(np.arange(60) * 3, np.arange(80)).astype(np.uint8)
    pixels = levels if grey else np.stack([levels, 255 - levels, levels // 2], 2)
    examples = [Image.fromarray(values) for values in (pixels * 0, pixels * 0 + 255, pixels)]
    expected = np.asarray(processor(examples, return_tensors="np")["pixel_values"], float).transpose(0, 2, 3, 1)
    black, white, _ = expected.mean((1, 2))
    std = 1 / (white - black)
    mean = -black * std
    if np.abs((shape(examples) / 255 - mean) / std - expected).max() > _CLOSE:
        raise DataError(f"{asked} does more than resize, crop and normalise; give float32 images in npz:FOLDER")
    return Preprocessing(shape, tuple(mean.tolist()), tuple(std.tolist()))
