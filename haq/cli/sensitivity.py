"""What each layer loses at each width: `haq sensitivity`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.style import Style
from rich.table import Table
from rich.text import Text

from haq.cli.options import DEFAULTS, examples, network_options
from haq.cli.terminal import TerminalObserver, console
from haq.config import check_range, parse_bits
from haq.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from haq.quant.schemes import Scheme
    from haq.search.sensitivity import Sensitivity

    Array = NDArray[np.float64]

__all__ = ["sensitivity"]

_CALIBRATION_IMAGES = 512
_SPAN = 1e-6  # of the largest value; what is smaller has the same colour
_MEANINGS = {
    "kl": "divergence of the outputs, nats",
    "loss": "rise of the loss, nats",
    "sqnr": "signal to noise of the outputs, dB: low is sensitive",
    "hessian": "curvature of the loss times squared error",
}
_SHADES = " ░▒▓█"
_COLORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # of matplotlib's viridis
_BRIGHT = 130  # of 255; from here on black can be read better than white


@click.command(
    epilog=examples(
        "haq sensitivity",
        "haq sensitivity --measure sqnr --bits 2,4,8",
        "haq sensitivity --model resnet20 --weights resnet20.pt --data npz:cifar10 -o sensitivity.json",
        "haq sensitivity --measure kl,hessian -o maps.png",
    )
)
@network_options
@click.option("--bits", default="2-8", show_default=True, metavar="WIDTHS", help="Widths, such as 2,3,4,6,8 or 2-8.")
@click.option(
    "--measure",
    default="kl",
    show_default=True,
    metavar="NAMES",
    help="kl (divergence of the outputs), loss, sqnr (signal to noise of the outputs) or hessian (curvature of the "
    "loss); several with commas, or all.",
)
@click.option("--images", default=512, show_default=True, help="Held-out training images to measure on, about.")
@click.option("--scheme", default=DEFAULTS.scheme, show_default=True, metavar="NAME", help="See haq schemes.")
@click.option("--seed", default=DEFAULTS.seed, show_default=True, help="Which images, and probes of the curvature.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the values, .json, or draw the maps, .png. A .json of the same network, data and options is read, not "
    "measured again.",
)
def sensitivity(
    model: str,
    weights: str | None,
    data: str,
    bits: str,
    measure: str,
    images: int,
    scheme: str,
    seed: int,
    output: Path | None,
) -> None:
    """Print how much each layer alone loses at each width, weights and activations apart.

    All other layers stay in floating point. One scale of colours serves both maps of a measure, logarithmic.
    """
    measures = _measures(measure)
    widths = parse_bits(bits)
    for option, value, least in (("--images", images, 1), ("--seed", seed, 0)):
        check_range(option, value, least)
    if output is not None and output.suffix.lower() not in (".json", ".png"):
        raise ConfigError(f"-o {output}: values are written as .json, maps as .png")
    with TerminalObserver() as observer:
        from haq.quant.schemes import get_scheme

        chosen = get_scheme(scheme)
        _check_widths(chosen, widths)
        measured = _measured(model, weights, data, widths, measures, images, chosen, seed, output, observer)
    for values in measured.values():
        _print_maps(values)
    if output is not None:
        if output.suffix.lower() == ".png":
            _write_png(measured, f"{model}, {chosen.name}", output)
        console.print(Text(f"\nwritten: {output}"), soft_wrap=True)


def _measures(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(","))) if text != "all" else tuple(_MEANINGS)
    for name in names:
        if name not in _MEANINGS:
            known = ", ".join(_MEANINGS)
            raise ConfigError(f"--measure {name}: unknown{did_you_mean(name, _MEANINGS)}; use {known} or all")
    return names


def _check_widths(scheme: Scheme, widths: tuple[int, ...]) -> None:
    for width in widths:
        if width not in scheme.widths or (scheme.inputs is not None and width not in scheme.input_widths):
            known = ", ".join(map(str, scheme.widths))
            raise ConfigError(f"--scheme {scheme.name} is defined for {known} bits, not {width}; give --bits of these")


def _measured(
    model: str,
    weights: str | None,
    data: str,
    widths: tuple[int, ...],
    measures: tuple[str, ...],
    images: int,
    scheme: Scheme,
    seed: int,
    output: Path | None,
    observer: TerminalObserver,
) -> dict[str, Sensitivity]:
    from haq.data import get_data
    from haq.layers import trace
    from haq.models import open_model
    from haq.quant.calibration import calibrate
    from haq.search.sensitivity import cached, fingerprint, measure_sensitivity
    from haq.search.sensitivity.threads import one_thread

    split = get_data(data, images, seed, model)
    network = open_model(model, weights, split, lambda done, total: observer.progress("train float", done, total))
    names = [layer.name for layer in trace(network, split.train.batch([0])[0])]
    held = split.val.subset(range(min(images, len(split.val))))
    shown = split.train.subset(range(min(_CALIBRATION_IMAGES, len(split.train))))
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

    if output is None or output.suffix.lower() != ".json":
        return compute()
    key = {
        "network": fingerprint(network), "images": fingerprint(held, shown), "layers": names, "scheme": scheme.name,
        "widths": widths, "measures": measures, "seed": seed,
    }  # fmt: skip
    return cached(output, key, compute)


# What is shown


def _print_maps(values: Sensitivity) -> None:
    plain = console.color_system is None or console.no_color
    console.print(Text(f"\n{values.measure}: {_MEANINGS[values.measure]}", style="bold"))
    console.print(Text(f"{_SHADES[-1]} is most sensitive" if plain else "bright is most sensitive", style="dim"))
    lowest, highest = _scale(values)
    for title, shown, costs in (
        ("weights", values.weights, values.weight_costs),
        ("activations", values.activations, values.activation_costs),
    ):
        table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, header_style="dim", show_edge=False)
        table.add_column(title, overflow="fold")
        for width in values.widths:
            table.add_column(f"{width} ", justify="right", no_wrap=True)
        if shown is None or costs is None:
            continue
        for name, row, costs_row in zip(values.layers, shown, costs, strict=True):
            cells = (
                _cell(_number(values.measure, value), _position(cost, lowest, highest), plain)
                for value, cost in zip(row, costs_row, strict=True)
            )
            table.add_row(Text(f"{name} "), *cells)
        console.print()
        console.print(table)


def _scale(values: Sensitivity) -> tuple[float, float]:
    """Returns the ends of the scale of colours, both positive."""
    maps = (values.weight_costs, values.activation_costs)
    costs = [float(cost) for part in maps if part is not None for cost in part.flat if 0 < cost < float("inf")]
    highest = max(costs, default=1.0)
    return min(max(min(costs, default=highest), _SPAN * highest), highest / 10), highest


def _position(cost: float, lowest: float, highest: float) -> float:
    """Returns where a cost stands on the logarithmic scale, 0 to 1."""
    import numpy as np

    return float(np.log(np.clip(cost, lowest, highest) / lowest) / np.log(highest / lowest))


def _number(measure: str, value: float) -> str:
    if measure == "sqnr":
        return f"{value:.1f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if value else "0"


def _cell(number: str, position: float, plain: bool) -> Text:
    if plain:
        return Text(f" {number}{_SHADES[min(int(position * len(_SHADES)), len(_SHADES) - 1)]}")
    place = position * (len(_COLORS) - 1)
    left = min(int(place), len(_COLORS) - 2)
    red, green, blue = (
        round(a + (place - left) * (b - a)) for a, b in zip(_COLORS[left], _COLORS[left + 1], strict=True)
    )
    text = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > _BRIGHT else "white"
    return Text(f" {number:>7} ", style=Style(color=text, bgcolor=f"rgb({red},{green},{blue})"))


def _write_png(measured: Mapping[str, Sensitivity], title: str, path: Path) -> None:
    # A figure of its own: pyplot would choose a backend for the whole process
    import numpy as np
    from matplotlib.colors import LogNorm  # slow to import
    from matplotlib.figure import Figure

    from haq.files import replacing

    layers = max(len(values.layers) for values in measured.values())
    height = len(measured) * (1.3 + 0.2 * layers)
    figure = Figure(figsize=(9, max(3.0, height)), dpi=120, layout="constrained")
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    grid = figure.subplots(len(measured), 2, squeeze=False)
    for axes, values in zip(grid, measured.values(), strict=True):
        lowest, highest = _scale(values)
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
        label = "noise over signal" if values.measure == "sqnr" else _MEANINGS[values.measure]
        figure.colorbar(image, ax=list(axes), label=label)
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")
    except OSError as error:
        raise ConfigError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
