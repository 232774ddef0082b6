from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from haq.hwmodels import CostTable, get_hardware
from haq.layers import LayerSpec

MakeLayer = Callable[..., LayerSpec]
Reference = Callable[..., NDArray[np.int64]]
Weights = Callable[..., NDArray[np.int64]]


def _layer(
    name: str = "conv", c_in: int = 64, c_out: int = 32, kernel: int = 3, size: int = 8, groups: int = 1
) -> LayerSpec:
    kind = "conv" if groups == 1 else "depthwise" if groups == c_in else "grouped"
    params = c_out * (c_in // groups) * kernel**2
    return LayerSpec(
        name, kind, c_in, c_out, (kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1), groups,
        (size, size), (size, size), size**2 * params, params, 0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_layer() -> MakeLayer:
    return _layer


@pytest.fixture(scope="session")
def layers() -> Sequence[LayerSpec]:
    return [_layer("conv1", 3), _layer("conv2.dw", 32, groups=32), _layer("fc", 32, 10, 1, 1)]


@pytest.fixture(scope="session")
def table(layers: Sequence[LayerSpec]) -> CostTable:
    """Weights have 2, 4 and 8 bits, activations 3 and 8, so that no width is its own offset."""
    return CostTable.build(get_hardware("edge"), layers, (2, 4, 8), (3, 8), batch=4)


@pytest.fixture
def parts(table: CostTable) -> dict[str, object]:
    """Returns the constructor arguments of `table`, for tests that spoil one of them."""
    metrics: Mapping[str, object] = {metric: costs.copy() for metric, costs in table.metrics.items()}
    names = ("hardware", "batch", "layers", "w_bits", "a_bits", "origin", "version")
    return {**{name: getattr(table, name) for name in names}, "metrics": metrics}


def _reference(
    codes: NDArray[np.uint8],
    weights: NDArray[np.int64],
    a_zero_point: int = 0,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> NDArray[np.int64]:
    """Convolves in int64, tap by tap; the padding is added to the values, as zeros."""
    values = codes.astype(np.int64) - a_zero_point
    if weights.ndim == 2:
        return values @ weights.T
    values = np.pad(values, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    per_group, channels, *kernel = len(weights) // groups, *weights.shape[1:]
    height, width = (
        (size - d * (k - 1) - 1) // s + 1
        for size, d, k, s in zip(values.shape[1:3], dilation, kernel, stride, strict=True)
    )
    out = np.zeros((len(values), height, width, len(weights)), np.int64)
    for y, x in np.ndindex(*kernel):
        rows = slice(y * dilation[0], y * dilation[0] + (height - 1) * stride[0] + 1, stride[0])
        columns = slice(x * dilation[1], x * dilation[1] + (width - 1) * stride[1] + 1, stride[1])
        for group in range(groups):
            taps = values[:, rows, columns, group * channels : (group + 1) * channels]
            chosen = slice(group * per_group, (group + 1) * per_group)
            out[..., chosen] += taps @ weights[chosen, :, y, x].T
    return out


def _random_weights(
    generator: np.random.Generator, shape: tuple[int, ...], w_bits: int, signed: bool
) -> NDArray[np.int64]:
    if signed and w_bits == 1:
        return 2 * generator.integers(0, 2, shape) - 1
    low, high = (-(2 ** (w_bits - 1)), 2 ** (w_bits - 1)) if signed else (0, 2**w_bits)
    return generator.integers(low, high, shape)


def _random_affine(
    generator: np.random.Generator, shape: tuple[int, ...], w_bits: int, signed: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns codes and a zero point for every channel, both ends of the range among them."""
    low = -(2 ** (w_bits - 1)) if signed else 0
    zeros = generator.integers(low, low + 2**w_bits, shape[0])
    zeros[generator.integers(0, shape[0], 2)] = low, low + 2**w_bits - 1
    return generator.integers(low, low + 2**w_bits, shape), zeros


@pytest.fixture(scope="session")
def random_affine() -> Callable[..., tuple[NDArray[np.int64], NDArray[np.int64]]]:
    return _random_affine


@pytest.fixture(scope="session")
def reference() -> Reference:
    return _reference


@pytest.fixture(scope="session")
def random_weights() -> Weights:
    return _random_weights


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)
