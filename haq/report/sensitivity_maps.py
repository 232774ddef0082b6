"""Maps of sensitivity: the scale of colours, and the picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from haq.errors import ConfigError
from haq.io.files import replacing
from haq.search.sensitivity import Sensitivity

__all__ = ["position", "scale", "write_maps"]

_SPAN = 1e-6  # of the largest value; smaller values share one colour


def scale(values: Sensitivity) -> tuple[float, float]:
    """Returns the ends of the scale of colours, both positive; weights and activations share it."""
    maps = (values.weight_costs, values.activation_costs)
    costs = [float(cost) for part in maps if part is not None for cost in part.flat if 0 < cost < float("inf")]
    highest = max(costs, default=1.0)
    return min(max(min(costs, default=highest), _SPAN * highest), highest / 10), highest


def position(cost: float, ends: tuple[float, float]) -> float:
    """Returns the position of a cost on the logarithmic scale between `ends`, 0 to 1."""
    lowest, highest = ends
    return float(np.log(np.clip(cost, lowest, highest) / lowest) / np.log(highest / lowest))


def write_maps(measured: Mapping[str, Sensitivity], labels: Mapping[str, str], title: str, path: Path) -> None:
    """Writes the maps of every measure as PNG: weights and activations side by side, on one scale.

    Args:
        measured: Measure → values, of the same layers.
        labels: Measure → meaning of its colours.
        title: Title of the figure.
        path: PNG file to write.

    Raises:
        ConfigError: The file cannot be written.
    """
    # Not pyplot, which would choose a backend for the whole process
    from matplotlib.colors import LogNorm  # slow to import
    from matplotlib.figure import Figure

    layers = max(len(values.layers) for values in measured.values())
    height = len(measured) * (1.3 + 0.2 * layers)
    figure = Figure(figsize=(9, max(3.0, height)), dpi=120, layout="constrained")
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    grid = figure.subplots(len(measured), 2, squeeze=False)
    for axes, values in zip(grid, measured.values(), strict=True):
        lowest, highest = scale(values)
        parts = {"weights": values.weight_costs, "activations": values.activation_costs}
        for axis, (part, costs) in zip(axes, parts.items(), strict=True):
            if costs is None:
                axis.set_axis_off()
                continue
            image = axis.imshow(
                np.clip(costs, lowest, highest), norm=LogNorm(lowest, highest), cmap="viridis", aspect="auto"
            )
            axis.set_title(f"{values.measure}, {part}", fontsize=9)
            axis.set_xlabel("bits", fontsize=8)
            axis.set_xticks(range(len(values.widths)), [str(width) for width in values.widths], fontsize=8)
            names = [name.replace("$", r"\$") for name in values.layers] if part == "weights" else [""] * layers
            axis.set_yticks(range(len(values.layers)), names, fontsize=7)
        figure.colorbar(image, ax=list(axes), label=labels[values.measure])
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")
    except OSError as error:
        raise ConfigError(f"cannot write {str(path)!r}: {error.strerror or error}; give another file") from None
