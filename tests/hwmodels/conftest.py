from collections.abc import Callable, Mapping, Sequence

import pytest

from haq.hwmodels import CostTable, get_hardware
from haq.layers import LayerKind, LayerSpec

MakeLayer = Callable[..., LayerSpec]


def _layer(
    name: str = "conv", c_in: int = 64, c_out: int = 32, kernel: int = 3, size: int = 8, groups: int = 1
) -> LayerSpec:
    kind: LayerKind = "conv" if groups == 1 else "depthwise" if groups == c_in else "grouped"
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
