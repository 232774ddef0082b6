"""`haq sensitivity`: what each layer loses at each width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from haq.cli.options import DEFAULTS, at_least, examples, network_options
from haq.cli.output import Result, output_options
from haq.cli.terminal import TerminalObserver, console
from haq.config import parse_bits
from haq.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from haq.quant.schemes import Scheme
    from haq.search.sensitivity import Sensitivity

__all__ = ["sensitivity"]

_MEANINGS = {
    "fisher": "estimated divergence of the outputs, nats",
    "kl": "divergence of the outputs, nats",
    "loss": "rise of the loss, nats",
    "sqnr": "signal to noise of the outputs, dB: low is sensitive",
    "hessian": "curvature of the loss times squared error",
}
_SHADES = " ░▒▓█"
_COLORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # of matplotlib's viridis
_BRIGHT = 130  # of 255; above this, black text is easier to read than white


@click.command(
    epilog=examples(
        "haq sensitivity",
        "haq sensitivity --measure kl --bits 2,4,8",
        "haq sensitivity --model resnet20 --weights resnet20.pt --data npz:cifar10 -o sensitivity.json",
        "haq sensitivity --measure kl,hessian -o maps.png",
    )
)
@network_options
@click.option("--bits", default="2-8", show_default=True, metavar="WIDTHS", help="Widths, such as 2,3,4,6,8 or 2-8.")
@click.option(
    "--measure",
    default="fisher",
    show_default=True,
    metavar="NAMES",
    help="fisher (estimated divergence of the outputs), kl (the divergence itself, which takes longer), loss, sqnr "
    "(signal to noise of the outputs) or hessian (curvature of the loss); several separated by commas, or all.",
)
@click.option("--images", default=512, show_default=True, help="About how many held-out training images to use.")
@click.option("--scheme", default=DEFAULTS.scheme, show_default=True, metavar="NAME", help="See haq schemes.")
@click.option("--seed", default=DEFAULTS.seed, show_default=True, help="Seed of the choice of images and the probes.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the values as .json, or draw the maps as .png. Values in a .json of the same network, data and options "
    "are read, not measured again.",
)
@output_options
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
) -> Result:
    """Print how much each layer alone loses at each width, separately for weights and activations.

    All other layers stay in floating point. Both maps of a measure share one logarithmic scale of colours. With
    --quiet, only the maps are printed, or with -o only the path of the file.
    """
    measures = _measures(measure)
    widths = parse_bits(bits)
    at_least({"--images": (images, 1), "--seed": (seed, 0)})
    if output is not None and output.suffix.lower() not in (".json", ".png"):
        raise ConfigError(f"-o {output}: values are written as .json, maps as .png")
    with TerminalObserver() as observer:
        from haq.quant.schemes import get_scheme
        from haq.runs.project import open_network
        from haq.search.sensitivity.network import network_sensitivity

        chosen = get_scheme(scheme)
        _check_widths(chosen, widths)
        network, split = open_network(model, weights, data, images, seed, observer)
        file = output if output is not None and output.suffix.lower() == ".json" else None
        measured = network_sensitivity(network, split, widths, measures, chosen, observer, images, seed, file)
    maps = [part for values in measured.values() for part in _maps(values)]
    for part in maps:
        console.print(part)
    if output is not None:
        if output.suffix.lower() == ".png":
            from haq.report.sensitivity_maps import write_maps

            labels = {name: "noise over signal" if name == "sqnr" else text for name, text in _MEANINGS.items()}
            write_maps(measured, labels, f"{model}, {chosen.name}", output)
        console.print(Text(f"\nwritten: {output}"), soft_wrap=True)
    brief = tuple(maps) if output is None else (str(output),)
    return Result(lambda: {"scheme": chosen.name, "measures": measured, "file": output}, brief)


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
            raise ConfigError(f"--scheme {scheme.name} is defined for {known} bits, not {width}; give --bits in these")


# What is shown


def _maps(values: Sensitivity) -> Iterator[RenderableType]:
    from haq.report.sensitivity_maps import position, scale

    plain = console.color_system is None or console.no_color
    yield Text(f"\n{values.measure}: {_MEANINGS[values.measure]}", style="bold")
    yield Text(f"{_SHADES[-1]} is most sensitive" if plain else "bright is most sensitive", style="dim")
    ends = scale(values)
    for title, shown, costs in (
        ("weights", values.weights, values.weight_costs),
        ("activations", values.activations, values.activation_costs),
    ):
        if shown is None or costs is None:
            continue
        table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, header_style="dim", show_edge=False)
        table.add_column(title, overflow="fold")
        for width in values.widths:
            table.add_column(f"{width} ", justify="right", no_wrap=True)
        for name, row, costs_row in zip(values.layers, shown, costs, strict=True):
            cells = (
                _cell(_number(values.measure, value), position(cost, ends), plain)
                for value, cost in zip(row, costs_row, strict=True)
            )
            table.add_row(Text(f"{name} "), *cells)
        yield ""
        yield table


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
