import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import ConfigError
from haq.quant.api import quantize
from haq.quant.quantizers.granularity import check_granularity, group, ungroup
from haq.testing import GRANULARITIES

shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4)


@given(shapes, st.sampled_from(GRANULARITIES))
def test_ungroup_is_the_inverse(shape: list[int], granularity: str) -> None:
    x = torch.arange(float(torch.Size(shape).numel())).view(shape)
    assert torch.equal(ungroup(group(x, granularity), x, granularity), x)


def test_what_shares_a_scale() -> None:
    weight = torch.arange(24.0).view(2, 3, 2, 2)
    assert group(weight, "channel")[1].tolist() == list(range(12, 24))
    assert group(weight, "row")[1].tolist() == [2, 3]
    assert group(weight, "column")[1].tolist() == [1, 13]
    assert group(weight, "group:5").shape == (6, 4), "4 is the largest divisor of 12 up to 5"
    assert group(weight, "element").shape == (24, 1)


@given(st.integers(0, 100), st.sampled_from(["mse", "minmax"]))
def test_a_finer_granularity_is_no_worse(seed: int, clip: str) -> None:
    x = torch.randn(4, 6, 2, 2, generator=torch.Generator().manual_seed(seed))

    def error(granularity: str) -> float:
        return float((quantize(x, 4, "linear", granularity, clip=clip).dequantize() - x).square().mean())

    if clip == "mse":
        assert error("channel") <= error("tensor") * 1.02
    assert error("element") <= 1e-9, "a scale for each value takes each value to a level"


@pytest.mark.parametrize("wrong", ["channels", "group", "group:0", "group:-1", ""])
def test_unknown(wrong: str) -> None:
    with pytest.raises(ConfigError, match="unknown granularity"):
        check_granularity(wrong)
