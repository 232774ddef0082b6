from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.hwmodels.accelerators.gemm import Gemm, ceil_div, input_values, output_values


def test_a_layer_as_a_product(make_layer):
    assert Gemm.of(make_layer(c_in=64, c_out=32, kernel=3, size=8), 2) == (1, 32, 576, 128)
    assert Gemm.of(make_layer(c_in=64, c_out=32, kernel=3, size=8, groups=4), 1) == (4, 8, 144, 64)


@pytest.mark.parametrize(
    ("gemm", "packed"),
    [
        (Gemm(96, 1, 9, 10), Gemm(12, 8, 72, 10)),  # 8 rows are full before 256 inputs
        (Gemm(60, 1, 9, 10), Gemm(8, 8, 72, 10)),  # the last product is part empty
        (Gemm(96, 1, 100, 10), Gemm(48, 2, 200, 10)),  # 256 inputs are full first
        (Gemm(3, 1, 9, 10), Gemm(1, 3, 27, 10)),  # no more groups
        (Gemm(4, 9, 9, 10), Gemm(4, 9, 9, 10)),  # larger than a tile
        (Gemm(1, 4, 9, 10), Gemm(1, 4, 9, 10)),
    ],
)
def test_small_groups_are_joined(gemm, packed):
    assert gemm.packed(8, 256) == packed


@given(
    groups=st.integers(1, 100),
    m=st.integers(1, 20),
    k=st.integers(1, 300),
    rows=st.integers(1, 32),
    depth=st.integers(1, 300),
)
def test_joined_groups_fit_a_tile_and_none_is_lost(groups, m, k, rows, depth):
    packed = Gemm(groups, m, k, 1).packed(rows, depth)
    joined = packed.m // m
    assert packed.k == joined * k
    assert joined == 1 or (packed.m <= rows and packed.k <= depth)
    assert packed.groups == ceil_div(groups, joined)


def test_values_that_are_read_and_written(make_layer):
    layer = make_layer(c_in=64, c_out=32, kernel=3, size=8)
    assert (input_values(layer, 2), output_values(layer, 2)) == (2 * 64 * 64, 2 * 32 * 64)
    depthwise = make_layer(c_in=64, c_out=64, kernel=3, size=8, groups=64)
    assert input_values(depthwise, 1) == 64 * 64


def test_a_module_called_twice_reads_twice(make_layer):
    layer = make_layer(c_in=64, c_out=32, kernel=3, size=8)
    twice = replace(layer, macs=2 * layer.macs)
    assert (input_values(twice, 1), output_values(twice, 1)) == (2 * 64 * 64, 2 * 32 * 64)


def test_a_stride_past_the_kernel_skips_inputs(make_layer):
    layer = make_layer(c_in=64, c_out=32, kernel=1, size=8)
    assert input_values(replace(layer, in_size=(16, 16), stride=(2, 2)), 1) == 64 * 64
