import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.errors import ConfigError
from haq.hwmodels import Hardware, LayerCost, get_hardware, list_hardware
from haq.hwmodels.roofline import Mark, Roofline, check_png, draw, roofline, write_png
from haq.policy import LayerBits

PLAIN = Roofline("8/8", 1e11, 1e9, (Mark("conv", 10.0, 5e9), Mark("fc", 1000.0, 1e11)))
POSITIVE = st.floats(1e-6, 1e15)


@pytest.mark.parametrize("name", list_hardware())
@pytest.mark.parametrize("batch", [1, 16])
def test_no_layer_lies_above_the_roof(name, batch, layers):
    hardware = get_hardware(name)
    for bits in hardware.pairs:
        costs = [hardware.cost(layer, bits, batch) for layer in layers]
        drawn = roofline(hardware, layers, costs, bits, batch)
        assert {mark.layer for mark in drawn.marks} == {layer.name for layer in layers}
        for mark in drawn.marks:
            assert mark.attained <= drawn.roof(mark.intensity) * (1 + 1e-9)


class Ports:
    """Moves 1 GB/s through each of two ports."""

    bytes_per_second = 1e9

    def macs_per_second(self, bits: LayerBits) -> float:
        return 1e12


def test_marks_are_where_the_arithmetic_puts_them(make_layer):
    layer, other = make_layer("slow"), make_layer("unknown")
    hardware: Hardware = Ports()  # type: ignore[assignment]
    # 3 MB through the slower of two ports in 3 ms, 4 MB in all; the layer takes 4 ms
    cost = LayerCost({"latency_ms": 4.0}, compute_ms=1.0, memory_ms=3.0, memory_bytes=4e6)
    drawn = roofline(hardware, [layer, other], [cost, LayerCost({"latency_ms": 1.0})], LayerBits(8, 8), batch=2)
    assert [mark.layer for mark in drawn.marks] == ["slow"]  # what moves nothing has no intensity
    assert drawn.marks[0].intensity == pytest.approx(2 * layer.macs / 3e6)
    assert drawn.marks[0].attained == pytest.approx(2 * layer.macs / 4e-3)
    assert (drawn.label, drawn.ridge) == ("8/8", pytest.approx(1000))


def test_the_roof_is_memory_below_the_ridge_and_arithmetic_above():
    assert [PLAIN.roof(intensity) for intensity in (1.0, PLAIN.ridge, 1e6)] == [1e9, 1e11, 1e11]


def test_the_drawing():
    assert draw([PLAIN], width=60, height=14).splitlines() == DRAWN.splitlines()


DRAWN = """\
GMAC/s over MAC/byte    layers: ● 8/8
    │
100 ┤                        ⢀⡠⠔⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉● 8/8
    │                     ⣀⠤⠊⠁
    │                 ⢀⡠⠔⠉
    │              ⣀⠤⠊⠁
    │          ⢀⡠⠔⠉
    │       ⣀⠤⠊⠁
 10 ┤   ⢀⡠⠔⠉
    │⣀⠔⠊⠁
    │    ●
    │
    └────┬──────────────────────┬──────────────────────┬────
        10                     100                   1000
"""


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            Roofline, st.sampled_from(["8/8", "4/4", "16/16"]), POSITIVE, POSITIVE,
            st.lists(st.builds(Mark, st.just("x"), POSITIVE, POSITIVE), max_size=4).map(tuple),
        ),
        min_size=1, max_size=12,
    ),
    st.integers(40, 90), st.integers(10, 30),
)  # fmt: skip
def test_any_drawing_fits_and_names_its_pairs(rooflines, width, height):
    lines = draw(rooflines, width, height).splitlines()
    assert len(lines) == height
    assert max(map(len, lines)) <= width
    body = "\n".join(lines[1:])
    assert len(lines[-1].split()) >= 1
    assert body.count("┤") >= 2
    assert any(roof.label in body for roof in rooflines)


def test_axes_have_numbers_even_within_a_decade():
    near = Roofline("8/8", 3e9, 1e9, (Mark("a", 3.0, 2.5e9), Mark("b", 3.5, 2.8e9)))
    lines = draw([near]).splitlines()
    assert sum("┤" in line for line in lines) >= 2
    assert len(lines[-1].split()) >= 2


def test_png(tmp_path):
    path = tmp_path / "new" / "roofline.png"
    write_png([PLAIN, Roofline("4/4", 4e11, 1e9, PLAIN.marks)], "$net$ on edge", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert math.prod(int.from_bytes(path.read_bytes()[at : at + 4]) for at in (16, 20)) > 500_000  # pixels
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        write_png([PLAIN], "net", tmp_path / "file" / "roofline.png")


def test_a_png_that_cannot_be():
    with pytest.raises(ConfigError, match=r"give a file that ends in \.png"):
        check_png(Path("roofline.svg"))
