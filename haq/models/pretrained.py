"""The default network's weights: trained on first use, then kept in the user's cache folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.data import ImageData, Samples
from haq.errors import ModelError
from haq.io.files import cache_folder, replacing
from haq.models.data_fit import check_fit
from haq.models.registry import get_model, list_models, load_model, load_weights
from haq.process_state import random_states_restored
from haq.threads import one_thread

__all__ = ["open_model", "open_untrained", "pretrained_digits", "train_digits"]

logger = logging.getLogger(__name__)

_VERSION = 1  # of the architecture and the recipe; the network is trained again after a change
_EPOCHS, _BATCH, _RATE, _DECAY = 20, 32, 4e-3, 1e-2
_TURN, _SLANT, _STRETCH = 0.175, 0.15, 0.1  # radians (10 degrees); shares of the image

Progress = Callable[[int, int], None]


def pretrained_digits(train: Samples, progress: Progress) -> nn.Module:
    """Returns `digits-resnet` trained on `train`, from the cache if it was trained before.

    The cache is in `haq.io.files.cache_folder()`. If it cannot be written, the network is trained every time.

    Args:
        train: Training images of `digits`.
        progress: Called with the number of epochs done and in total, only if the network is trained.
    """
    path = cache_folder() / f"digits-resnet-v{_VERSION}.pt"
    if os.path.isfile(path):  # Path.is_file raises if a parent folder may not be entered
        with _one_thread_and_own_randomness(seed=0):
            model = get_model("digits-resnet")
        try:
            load_weights(model, path)
            return model.eval()
        except ModelError as error:
            logger.warning("training again: %s", error)
    model = train_digits(train, _EPOCHS, progress)
    try:
        with replacing(path) as temporary:
            torch.save(model.state_dict(), temporary)
    except OSError as error:
        logger.warning("cannot save the trained network; set HAQ_CACHE to a folder that can be written: %s", error)
    return model


def open_model(spec: str | nn.Module, weights: str | None, data: ImageData, progress: Progress) -> nn.Module:
    """Returns the float network for a data set, in evaluation mode.

    Args:
        spec: As in `load_model`; `digits-resnet` on `digits` without weights is the embedded pretrained network.
        weights: Path of a state dict to load.
        data: Data set; it determines the number of classes and channels of a built-in network.
        progress: Called with the number of epochs done and in total while the embedded network is trained.

    Raises:
        DataError: See `check_fit`.
        ModelError: The model or its weights cannot be loaded, or it fails on the data.
    """
    if isinstance(spec, str) and (spec, data.name, weights) == ("digits-resnet", "digits", None):
        return pretrained_digits(data.train, progress)
    model = load_model(spec, weights, data.num_classes, data.train.batch([0])[0].shape[1])
    check_fit(model, data)
    return model


def open_untrained(spec: str, weights: str | None, data: ImageData) -> nn.Module:
    """Returns a network whose weights do not matter, only their shapes: a built-in one may have random weights.

    Args:
        spec: As in `load_model`.
        weights: Path of a state dict to load; `None` gives a built-in network random weights.
        data: Data set; it determines the number of classes and channels of a built-in network.

    Raises:
        ModelError: The model or its weights cannot be loaded.
    """
    channels = data.train.batch([0])[0].shape[1]
    if weights is None and spec in list_models():
        return get_model(spec, data.num_classes, channels).eval()
    return load_model(spec, weights, data.num_classes, channels)


def train_digits(train: Samples, epochs: int, progress: Progress, seed: int = 0) -> nn.Module:
    """Trains `digits-resnet` with AdamW, a one-cycle learning rate and slightly moved images, on one thread.

    The caller's random state and thread count are restored.

    Args:
        train: Training images of `digits`.
        epochs: Number of epochs.
        progress: Called with the number of epochs done and in total.
        seed: Seed of the initial weights, the order of the images and their movements.
    """
    with _one_thread_and_own_randomness(seed):
        model = get_model("digits-resnet").train()
        steps = epochs * (len(train) // _BATCH)
        optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        rng = np.random.default_rng(seed)
        for epoch in range(epochs):
            progress(epoch, epochs)
            order = rng.permutation(len(train))
            for start in range(0, len(train) - _BATCH + 1, _BATCH):
                x, y = train.batch(order[start : start + _BATCH])
                loss = F.cross_entropy(model(_moved(x, rng)), y, label_smoothing=0.05)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        progress(epochs, epochs)
    return model.eval()


def _moved(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Turns, stretches, slants and shifts every image a little, as handwriting varies; digits stay recognisable."""
    count = len(x)
    angle, slant, stretch_x, stretch_y, shift_x, shift_y = torch.from_numpy(
        rng.uniform(-1, 1, (6, count)).astype(np.float32)
    )
    angle = angle * _TURN
    turn = torch.zeros(count, 2, 3)
    turn[:, 0, 0], turn[:, 0, 1] = angle.cos() * (1 + _STRETCH * stretch_x), _SLANT * slant - angle.sin()
    turn[:, 1, 0], turn[:, 1, 1] = angle.sin(), angle.cos() * (1 + _STRETCH * stretch_y)
    turn[:, 0, 2], turn[:, 1, 2] = shift_x * 2 / x.shape[3], shift_y * 2 / x.shape[2]  # one pixel of [−1, 1]
    grid = F.affine_grid(turn, list(x.shape), align_corners=False)
    background = float(x.min())  # grid_sample fills with zeros, so the background must be 0
    return F.grid_sample(x - background, grid, align_corners=False) + background


@contextmanager
def _one_thread_and_own_randomness(seed: int) -> Iterator[None]:
    with random_states_restored(), one_thread():
        torch.manual_seed(seed)
        yield
