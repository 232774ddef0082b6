"""Rooflines: how fast each layer runs, against the limits of arithmetic and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from haq.errors import ConfigError
from haq.hwmodels.hardware import Hardware, LayerCost
from haq.io.files import replacing
from haq.layers import LayerSpec
from haq.policy import LayerBits

__all__ = ["Mark", "Roofline", "check_png", "draw", "roofline", "write_png"]

_GLYPHS = "●○▲△■□◆◇"  # one for the layers of each pair of widths
_SHAPES = "oo^^ssDD"  # the same for Matplotlib, where every second one is drawn hollow
_COLORS = ("#2f81d6", "#d98c1f", "#8b95a1", "#3f9b57")
_NAMED = 3  # slowest layers of each pair that a PNG names
_PAD = 1.5
# Braille cells are two dots wide and four high; the bits of a cell's dots, by column and row
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK = 0x2800


@dataclass(frozen=True)
class Mark:
    """One layer in a roofline.

    Attributes:
        layer: Name of the layer.
        intensity: Multiply-accumulates per byte moved.
        attained: Multiply-accumulates per second.
    """

    layer: str
    intensity: float
    attained: float


@dataclass(frozen=True)
class Roofline:
    """The bounds of a network's layers at one pair of widths, and what the layers attain.

    Attributes:
        label: The pair of widths, such as `8/8`.
        peak: Peak rate of the arithmetic, in multiply-accumulates per second.
        bandwidth: Of the memory, in bytes per second.
        marks: Layers with arithmetic, a latency and known memory traffic, the slowest first.

    References:
        Williams, Waterman, Patterson: Roofline: An Insightful Visual Performance Model for Multicore Architectures,
        Communications of the ACM 52(4), 2009, doi:10.1145/1498765.1498785.
    """

    label: str
    peak: float
    bandwidth: float
    marks: tuple[Mark, ...]

    @property
    def ridge(self) -> float:
        """The intensity above which arithmetic binds, not memory."""
        return self.peak / self.bandwidth

    def roof(self, intensity: float) -> float:
        """Returns the most multiply-accumulates per second that a layer of this intensity can attain."""
        return min(self.peak, self.bandwidth * intensity)


def roofline(
    hardware: Hardware, layers: Sequence[LayerSpec], costs: Sequence[LayerCost], bits: LayerBits, batch: int
) -> Roofline:
    """Places priced layers under the roof of the hardware.

    A device that reads through one port and writes through another moves more bytes than the bandwidth of one port
    allows. The intensity therefore counts the bytes of the busier port where these are fewer, and no layer lies above
    the roof.

    Args:
        hardware: The cost model.
        layers: Layers, L of them.
        costs: Cost of each layer at `bits`, from `hardware.cost`, L of them.
        bits: The widths.
        batch: Samples that the costs are for.
    """
    bandwidth = hardware.bytes_per_second
    marks = []
    for layer, cost in sorted(zip(layers, costs, strict=True), key=lambda pair: -_latency_ms(pair[1])):
        port_bytes = cost.memory_ms * 1e-3 * bandwidth
        moved = min(cost.memory_bytes, port_bytes)
        latency_ms = _latency_ms(cost)
        macs = batch * layer.macs  # none for an embedding, which so has no place on logarithmic axes
        if macs > 0 and moved > 0 and latency_ms > 0:
            marks.append(Mark(layer.name, macs / moved, macs / (latency_ms * 1e-3)))
    return Roofline(f"{bits.w_bits}/{bits.a_bits}", hardware.macs_per_second(bits), bandwidth, tuple(marks))


def _latency_ms(cost: LayerCost) -> float:
    """Returns 0 for a cost model without latency: its layers have no mark."""
    return cost.values.get("latency_ms", 0.0)


class _Scale:
    """A logarithmic axis that is divided into cells."""

    def __init__(self, values: Sequence[float], cells: int) -> None:
        self.low, self.high = min(values) / _PAD, max(values) * _PAD
        self.cells = cells

    def place(self, value: float) -> int:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return min(self.cells - 1, max(0, math.floor(share * self.cells)))

    def value(self, place: float) -> float:
        """Returns the value in the middle of a cell."""
        return math.exp(math.log(self.low) + (place + 0.5) / self.cells * math.log(self.high / self.low))

    def ticks(self) -> list[float]:
        """Returns powers of ten, or more round numbers where fewer than two powers fit."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8)):
            values = [step * 10.0**power for power in powers for step in steps]
            ticks = [value for value in values if self.low <= value <= self.high]
            if len(ticks) > 1:
                break
        return ticks


def draw(rooflines: Sequence[Roofline], width: int = 76, height: int = 18) -> str:
    """Draws rooflines as text, on logarithmic axes: GMAC/s over MACs per byte.

    Args:
        rooflines: One for each pair of widths; at least one.
        width: Columns, at least 40.
        height: Lines, at least 10.
    """
    columns, rows = _ranges(rooflines)
    margin = max(len(f"{tick:g}") for tick in _Scale(rows, 1).ticks()) + 2
    x, y = _Scale(columns, width - margin), _Scale(rows, height - 3)
    canvas = [[" "] * x.cells for _ in range(y.cells)]
    for roof in rooflines:
        _draw_roof(roof, canvas, x, y)
    for glyph, roof in zip(_cycled(_GLYPHS), rooflines, strict=False):
        for mark in reversed(roof.marks):  # the slowest on top
            canvas[y.place(mark.attained / 1e9)][x.place(mark.intensity)] = glyph
    _label_roofs(rooflines, canvas, x, y)

    y_ticks = {y.place(tick): f"{tick:g}" for tick in y.ticks()}
    legend = "  ".join(f"{glyph} {roof.label}" for glyph, roof in zip(_cycled(_GLYPHS), rooflines, strict=False))
    lines = [f"GMAC/s over MAC/byte    layers: {legend}"[:width]]
    for row in reversed(range(y.cells)):
        label = y_ticks.get(row, "")
        lines.append(f"{label:>{margin - 2}} {'┤' if label else '│'}{''.join(canvas[row])}")
    return "\n".join(line.rstrip() for line in [*lines, *_x_axis(x, margin)])


def _ranges(rooflines: Sequence[Roofline]) -> tuple[list[float], list[float]]:
    """Returns the intensities and the GMAC/s that the axes must cover: all layers, and both sides of the ridge."""
    marks = [mark for roof in rooflines for mark in roof.marks]
    columns = [*(mark.intensity for mark in marks), *(2 * roof.ridge for roof in rooflines)]
    rows = [*(mark.attained / 1e9 for mark in marks), *(roof.peak / 1e9 for roof in rooflines)]
    return columns, [*rows, max(rows) / 10]


def _draw_roof(roof: Roofline, canvas: list[list[str]], x: _Scale, y: _Scale) -> None:
    """Draws the line as dots, without gaps where it is steep."""
    dots = [[0] * x.cells for _ in range(y.cells)]
    fine_x, fine_y = _Scale([x.low * _PAD, x.high / _PAD], 2 * x.cells), _Scale([y.low * _PAD, y.high / _PAD], 1)
    fine_y.cells = 4 * y.cells
    before: int | None = None
    for column in range(fine_x.cells):
        value = roof.roof(fine_x.value(column)) / 1e9
        if value < y.low:
            continue
        here = fine_y.place(value)
        for dot in range(min(here, here if before is None else before + 1), here + 1):
            dots[dot // 4][column // 2] |= _DOTS[column % 2][3 - dot % 4]
        before = here
    for canvas_row, dots_row in zip(canvas, dots, strict=True):
        for column, bits in enumerate(dots_row):
            if bits:
                there = ord(canvas_row[column]) - _BLANK if canvas_row[column] != " " else 0
                canvas_row[column] = chr(_BLANK + (there | bits))


def _label_roofs(rooflines: Sequence[Roofline], canvas: list[list[str]], x: _Scale, y: _Scale) -> None:
    """Names each roof at its right end; roofs of the same height share a label."""
    labels: dict[int, list[str]] = {}
    for roof in rooflines:
        labels.setdefault(y.place(roof.roof(x.high) / 1e9), []).append(roof.label)
    for row, names in labels.items():
        text = f" {', '.join(names)}"[-x.cells :]
        canvas[row][-len(text) :] = text


def _x_axis(x: _Scale, margin: int) -> Iterator[str]:
    line, labels = ["─"] * x.cells, [" "] * x.cells
    for tick in x.ticks():
        place, text = x.place(tick), f"{tick:g}"
        line[place] = "┬"
        start = min(max(0, place - len(text) // 2), x.cells - len(text))
        if set(labels[max(0, start - 1) : start + len(text)]) <= {" "}:  # of labels that touch, the first stays
            labels[start : start + len(text)] = text
    yield " " * (margin - 1) + "└" + "".join(line)
    yield " " * margin + "".join(labels)


def _cycled(glyphs: str) -> Iterator[str]:
    while True:
        yield from glyphs


def check_png(path: Path) -> None:
    """Checks that `write_png` can write `path`, before any slow work.

    Raises:
        ConfigError: The suffix is not `.png`.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"-o {path}: a roofline is written as PNG; give a file that ends in .png")


def write_png(rooflines: Sequence[Roofline], title: str, path: Path) -> None:
    """Draws rooflines as a picture, with the names of the slowest layers.

    Args:
        rooflines: One for each pair of widths.
        title: Title of the picture.
        path: PNG file to write.

    Raises:
        ConfigError: The file cannot be written.
    """
    check_png(path)
    # Not pyplot, which would choose a backend for the whole process
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    columns, rows = _ranges(rooflines)
    x, y = _Scale(columns, 400), _Scale(rows, 1)
    intensities = [x.low, *(x.value(place) for place in range(x.cells)), x.high]
    for index, roof in enumerate(rooflines):
        color, shape = _COLORS[index % len(_COLORS)], _SHAPES[index % len(_SHAPES)]
        heights = [roof.roof(intensity) / 1e9 for intensity in intensities]
        axes.plot(intensities, heights, color=color, linewidth=1.5, label=f"roof at {roof.label}")
        axes.plot(
            [mark.intensity for mark in roof.marks],
            [mark.attained / 1e9 for mark in roof.marks],
            linestyle="none",
            marker=shape,
            markersize=6,
            color=color,
            fillstyle="full" if index % 2 == 0 else "none",
            label=f"layers at {roof.label}",
        )
        for mark, name in _named(roof, columns, rows):
            right = x.place(mark.intensity) > x.cells // 2
            axes.annotate(
                name.replace("$", r"\$"),
                (mark.intensity, mark.attained / 1e9),
                xytext=(-5 if right else 5, -9),
                textcoords="offset points",
                horizontalalignment="right" if right else "left",
                fontsize=7,
                color=color,
            )
    axes.set(
        xscale="log", yscale="log", xlim=(x.low, x.high), ylim=(y.low, y.high),
        xlabel="MACs per byte of memory traffic", ylabel="GMAC/s",
    )  # fmt: skip
    axes.set_title(title.replace("$", r"\$"), fontsize=11)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")
    except OSError as error:
        raise ConfigError(f"cannot write {str(path)!r}: {error.strerror or error}") from None


def _named(roof: Roofline, columns: Sequence[float], rows: Sequence[float]) -> list[tuple[Mark, str]]:
    """Returns the slowest layers with their labels; layers in one place share a label."""
    x, y = _Scale(columns, 20), _Scale(rows, 20)
    places: dict[tuple[int, int], list[Mark]] = {}
    for mark in roof.marks[:_NAMED]:
        places.setdefault((x.place(mark.intensity), y.place(mark.attained / 1e9)), []).append(mark)
    return [
        (marks[0], marks[0].layer + (f" and {len(marks) - 1} more" if len(marks) > 1 else ""))
        for marks in places.values()
    ]
