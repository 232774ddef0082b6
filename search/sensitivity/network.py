"""Measures the sensitivity of a network with its data, and keeps it in a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from haq.data import ImageData
from haq.progress import Observer
from haq.quant.calibration import calibrate
from haq.quant.reach import reached
from haq.quant.schemes import Scheme
from haq.runs.fingerprints import fingerprint
from haq.search.sensitivity.measure import measure_sensitivity
from haq.search.sensitivity.result import Sensitivity, cached
from haq.threads import one_thread

__all__ = ["network_sensitivity"]

_CALIBRATION_IMAGES = 512


def network_sensitivity(
    network: nn.Module,
    data: ImageData,
    widths: Sequence[int],
    measures: Sequence[str],
    scheme: Scheme,
    observer: Observer,
    images: int = 512,
    seed: int = 0,
    file: Path | None = None,
) -> dict[str, Sensitivity]:
    """Calibrates on training images, and measures on those that were held out.

    Args:
        network: In floating point.
        data: Of its task.
        widths: Ascending.
        measures: Some of `MEASURES`.
        scheme: Gives the quantizers.
        observer: Receives progress.
        images: Number of images to measure on; fewer if fewer are held out.
        seed: Decides the probes of the curvature.
        file: JSON. If it belongs to the same network, data and options, it is read and nothing is measured; otherwise
            it is written.

    Returns:
        Measure → values.
    """
    network, layers = reached(network, data.train.batch([0])[0])
    names = [layer.name for layer in layers]
    held = data.val.subset(range(min(images, len(data.val))))
    shown = data.train.subset(range(min(_CALIBRATION_IMAGES, len(data.train))))
    observer.say(f"{len(names)} layers, {len(held)} images, {scheme.name} quantizers")

    def compute() -> dict[str, Sensitivity]:
        observer.progress("calibrate", 0, 1)
        with one_thread():  # many small tensors: on a busy machine PyTorch's threads wait for each other for minutes
            calibration = calibrate(network, [x for x, _ in shown.batches(64)], widths, scheme)
        observer.progress("calibrate", 1, 1)
        start = time.perf_counter()
        result = measure_sensitivity(
            network, calibration, held, names, widths, measures,
            lambda done, total: observer.progress("measure", done, total, "percent"), seed=seed,
        )  # fmt: skip
        observer.say(f"measured in {time.perf_counter() - start:.1f} s")
        return result

    if file is None:
        return compute()
    key = {
        "network": fingerprint(network), "images": fingerprint(held, shown), "layers": names, "scheme": scheme.name,
        "widths": widths, "measures": measures, "seed": seed,
    }  # fmt: skip
    return cached(file, key, compute)
