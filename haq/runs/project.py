"""Opens a network and its data, and refuses them if they are not those of the run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from haq.config import SearchConfig
from haq.data import ImageData, get_data
from haq.errors import DataError, HaqError, ModelError
from haq.io.files import replacing
from haq.io.user_code import is_reference
from haq.models import open_model, open_untrained
from haq.progress import Observer, Silent
from haq.runs import Identity, RunFolder
from haq.runs.fingerprints import data_fingerprint, same_numbers, sample_outputs, weights_fingerprint
from haq.runs.identity import settings_of, short
from haq.runs.relocation import Named
from haq.threads import one_thread

__all__ = ["Project", "keep_float", "open_network", "open_project"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Project:
    """The network and data of a search.

    Attributes:
        model: The float network as the user's code returns it, in evaluation mode.
        data: All splits.
        identity: Fingerprints of both, and the options.
    """

    model: nn.Module
    data: ImageData
    identity: Identity


def open_network(
    model: str | nn.Module,
    weights: str | None,
    data: Any,
    val_images: int,
    seed: int,
    observer: Observer | None = None,
    *,
    trained: bool = True,
) -> tuple[nn.Module, ImageData]:
    """Opens a network and its data, which is prepared with the tokenizer or preprocessing of the network.

    Args:
        model: As in `haq.models.open_model`.
        weights: State dict to load.
        data: As in `haq.data.get_data`.
        val_images: Approximate number of training samples to hold out.
        seed: Determines which samples are held out.
        observer: Receives progress while the built-in network is trained.
        trained: Whether weights matter; if not, a built-in network has random weights.

    Raises:
        DataError: The data cannot be read, or does not fit the model.
        ModelError: The model or its weights cannot be loaded.
    """
    with one_thread():  # a user's function may train its network; one thread gives the same weights on any machine
        images = get_data(data, val_images, seed, model)
        if trained or isinstance(model, nn.Module):
            watching = observer or Silent()
            return open_model(model, weights, images, lambda *part: watching.progress("train float", *part)), images
        opened = open_untrained(model, weights, images)
    return opened, images


def open_project(
    config: SearchConfig, observer: Observer | None = None, run: RunFolder | None = None, named: Named | None = None
) -> Project:
    """Opens the network and data of a search.

    Args:
        config: Options, with absolute paths.
        observer: Receives progress while the built-in network is trained.
        run: A run that is resumed or used. Its fingerprints must match the network and data; a run from an older haq
            has none, and is not checked.
        named: Contains the model and data if they were given as objects.

    Raises:
        ConfigError: Options or files of the run were changed.
        DataError: The data cannot be read, does not fit the model, or is not the run's.
        ModelError: The model or its weights cannot be loaded, or are not the run's.
    """
    known = None
    if run is not None:
        run.check()
        known = run.read_identity()
        if known is None:
            logger.info("%s has no fingerprints: it was written by an older haq", run.path)
    kept = run.float if run is not None and _is_built_in(config) and run.float.is_file() else None
    weights = str(kept) if kept is not None else config.weights
    given, shown = (named.object("model"), named.object("data")) if named else (None, None)
    model, data = open_network(
        config.model if given is None else given,
        weights,
        config.data if shown is None else shown,
        config.val_images,
        config.seed,
        observer,
    )
    found = Identity(
        weights_fingerprint(model), sample_outputs(model, data), data_fingerprint(data), settings=settings_of(config)
    )
    if run is not None and known is not None and (error := _difference(config, known, found, run.path)) is not None:
        if isinstance(error, ModelError) and _is_random(config, model, data, observer):
            error = ModelError(
                f"model {config.model!r} returns different weights at each call, so it cannot match a run; set a seed "
                "in its function, or save the weights and give --weights FILE"
            )
        raise error
    return Project(model, data, found)


def keep_float(run: RunFolder, config: SearchConfig, model: nn.Module) -> None:
    """Writes the weights of the built-in network into a run folder; training on another machine may give others.

    Args:
        run: The run folder.
        config: Options of the run; for any other network, nothing is written.
        model: The network.
    """
    if _is_built_in(config):
        with replacing(run.float) as temporary:
            torch.save(model.state_dict(), temporary)


def _is_built_in(config: SearchConfig) -> bool:
    """Whether the network is the built-in one that is trained on first use."""
    return (config.model, config.data, config.weights) == ("digits-resnet", "digits", None)


def _difference(config: SearchConfig, known: Identity, found: Identity, run: Path) -> HaqError | None:
    """Returns an error for what has changed; outputs are compared last, because they depend on weights and data."""

    def prints(one: str, other: str) -> str:
        return f"run {str(run)!r} has the fingerprint {short(one)}, and {short(other)} was found"

    if known.data != found.data:
        return DataError(
            f"data {config.data!r} has changed: {prints(known.data, found.data)}; restore its samples and labels, give "
            "the right ones with --data, or start a new search"
        )
    if known.weights != found.weights:
        what = f"--weights {config.weights}" if config.weights is not None else f"model {config.model!r}"
        return ModelError(
            f"the weights of {what} have changed: {prints(known.weights, found.weights)}; restore them, give the right "
            "ones with --weights or --model, or start a new search"
        )
    if known.outputs and not same_numbers(known.outputs, found.outputs):
        return ModelError(
            f"model {config.model!r} has the weights of run {str(run)!r}, but computes something else: its code has "
            "changed; restore it, give the right one with --model, or start a new search"
        )
    return None


def _is_random(config: SearchConfig, model: nn.Module, data: ImageData, observer: Observer | None) -> bool:
    """Whether the user's function returns different weights each time it is called."""
    if not is_reference(config.model) or config.weights is not None:
        return False
    again, _ = open_network(config.model, None, data, config.val_images, config.seed, observer)
    return weights_fingerprint(again) != weights_fingerprint(model)
