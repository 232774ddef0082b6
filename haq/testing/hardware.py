"""Checks that every cost model must pass."""

from __future__ import annotations

import math

from haq.errors import HardwareError
from haq.hwmodels import Hardware, bops, size_bytes
from haq.hwmodels.tables.table import CostTable
from haq.layers import LayerSpec
from haq.policy import LayerBits

__all__ = ["check_hardware"]

_PINNED = LayerBits(8, 8)


def check_hardware(hardware: Hardware) -> None:
    """Checks a cost model on convolutions of every kind, a linear layer and an embedding.

    Costs must be finite and not negative. Latency and energy must be positive, except of an embedding, which has no
    arithmetic. Latency must be at least the time of arithmetic and of memory traffic. Size and bit operations must
    equal `haq.hwmodels.size_bytes` and `bops`. Layers can be pinned at 8 bits; pairs that are not listed are refused;
    and a cost table can be built.

    Args:
        hardware: The cost model.

    Raises:
        AssertionError: A check fails; the message says what the cost model does wrong.
    """
    assert hardware.name, "a cost model needs a name, because cost tables contain it"
    assert hardware.pairs, f"{hardware.name}: pairs is empty; list the legal pairs of widths"
    assert _PINNED in hardware.pairs, f"{hardware.name}: 8/8 bits must be legal, for pinned layers"
    for layer in _LAYERS:
        for bits in hardware.pairs:
            _check_cost(hardware, layer, bits)
    for bits in (LayerBits(w, a) for w in (None, 1, 3, 8, 16) for a in (None, 1, 3, 8, 16)):
        if bits not in hardware.pairs:
            _check_refusal(hardware, bits)
    w_bits, a_bits = ({getattr(pair, name) for pair in hardware.pairs} for name in ("w_bits", "a_bits"))
    table = CostTable.build(hardware, _LAYERS, sorted(w_bits), sorted(a_bits), batch=1)
    assert table.pairs == hardware.pairs, f"{hardware.name}: pairs must be ascending, weights first"


def _check_cost(hardware: Hardware, layer: LayerSpec, bits: LayerBits) -> None:
    where = f"{hardware.name}, {layer.kind} at {bits.w_bits}/{bits.a_bits} bits"
    cost = hardware.cost(layer, bits, batch=2)
    for field, value in cost.values.items():
        assert 0 <= value < math.inf, f"{where}: {field}={value} must be finite and at least 0"
    for field in ("latency_ms", "energy_mj"):
        assert cost.values.get(field, 1.0) > 0 or not layer.macs, f"{where}: {field} must be more than 0"
    assert max(cost.compute_ms, cost.memory_ms) <= cost.values.get("latency_ms", math.inf) * (1 + 1e-9), (
        f"{where}: latency_ms is less than the time for arithmetic or memory traffic alone"
    )
    for field, counted in (("size_bytes", size_bytes(layer, bits)), ("bops", bops(layer, bits))):
        assert cost.values.get(field, counted) == counted, f"{where}: {field} must be {counted}, as on all hardware"


def _check_refusal(hardware: Hardware, bits: LayerBits) -> None:
    try:
        hardware.cost(_LAYERS[0], bits)
    except HardwareError:
        return
    raise AssertionError(
        f"{hardware.name}: {bits.w_bits}/{bits.a_bits} bits are not in pairs, but `cost` accepts them; begin `cost` "
        "with haq.hwmodels.hardware.check_pair"
    )


def _conv(name: str, kind: str, groups: int) -> LayerSpec:
    params = 32 * (32 // groups) * 9
    return LayerSpec(
        name, kind, 32, 32, (3, 3), (1, 1), (1, 1), (1, 1), groups, (14, 14), (14, 14), params * 196, params, 32
    )


_LAYERS = [
    _conv("conv", "conv", 1),
    _conv("depthwise", "depthwise", 32),
    _conv("grouped", "grouped", 4),
    LayerSpec("audio", "conv", 40, 64, (5,), (2,), (2,), (1,), 1, (100,), (50,), 64 * 40 * 5 * 50, 64 * 40 * 5, 64),
    LayerSpec(
        "volume",
        "conv",
        1,
        8,
        (3, 3, 3),
        (1, 1, 1),
        (1, 1, 1),
        (1, 1, 1),
        1,
        (6, 8, 8),
        (6, 8, 8),
        8 * 27 * 384,
        8 * 27,
        8,
    ),
    LayerSpec("transposed", "transposed", 16, 8, (2, 2), (2, 2), (0, 0), (1, 1), 1, (7, 7), (14, 14), 512 * 49, 512, 8),
    LayerSpec("embedding", "embedding", 500, 24, (1, 1), (1, 1), (0, 0), (1, 1), 1, (12, 1), (12, 1), 0, 12_000, 0),
    LayerSpec("fc", "linear", 64, 10, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1), (1, 1), 640, 640, 10),
]
