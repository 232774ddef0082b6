"""The features of layers, against values computed by hand from HAQ's public code (mit-han-lab/haq)."""

import numpy as np
import pytest

from haq.constraints import Constraint
from haq.envs import BitAllocationEnv, Budget
from haq.envs.features import layer_features
from haq.hwmodels import CostTable
from haq.layers import LayerSpec
from haq.policy import BitPolicy, LayerBits

WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def conv(
    name: str, channels: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], size: tuple[int, int],
    groups: int = 1,
) -> LayerSpec:  # fmt: skip
    params = channels[0] // groups * channels[1] * kernel[0] * kernel[1]
    kind = "conv" if groups == 1 else "depthwise"
    return LayerSpec(
        name, kind, *channels, kernel, stride, (1, 1), (1, 1), groups, size, size, params, params, 0
    )  # fmt: skip


def linear(name: str, inputs: int, outputs: int, rows: int = 1) -> LayerSpec:
    params, one = inputs * outputs, (1, 1)
    return LayerSpec(
        name, "linear", inputs, outputs, one, one, (0, 0), one, 1, (rows, 1), (rows, 1), params, params, 0
    )  # fmt: skip


#               index  in  out  kernel  stride  input  weights  depthwise
# conv              0   3   16       3       2   1024      432          0
# depthwise         1  16   16       5       1    256      400          1
# linear            2  16   10       1       0     16      160          0
LAYERS = [
    conv("conv", (3, 16), (3, 3), (2, 2), (32, 32)),
    conv("depthwise", (16, 16), (5, 5), (1, 1), (16, 16), groups=16),
    linear("linear", 16, 10),
]
ROWS = [
    [0, 0, 1, 2 / 4, 1, 1, 1, 0],
    [1 / 2, 1, 1, 1, 1 / 2, 240 / 1008, 240 / 272, 1],
    [1, 1, 0, 0, 0, 0, 0, 0],
]


def make_env(pinned: dict[str, LayerBits] | None = None, a_bits: tuple[int, ...] | None = None) -> BitAllocationEnv:
    table = CostTable(
        "toy", 1, tuple(layer.name for layer in LAYERS), WIDTHS, WIDTHS,
        {"latency_ms": np.stack([np.outer(WIDTHS, WIDTHS).astype(float)] * 3)}, "modelled", "test",
    )  # fmt: skip
    return BitAllocationEnv(
        LAYERS, Budget(table, [Constraint("latency", 1.0, relative=True)], WIDTHS, pinned or {}, a_bits=a_bits)
    )


def test_features_are_scaled_from_the_least_to_the_largest_of_all_layers() -> None:
    assert layer_features(LAYERS) == pytest.approx(np.array(ROWS, np.float32))


def test_of_kernel_and_stride_the_first_axis_counts_and_of_the_input_both() -> None:
    layers = [conv("tall", (8, 8), (7, 1), (2, 1), (8, 4)), conv("wide", (8, 8), (1, 7), (1, 2), (4, 4))]
    assert layer_features(layers)[:, [3, 4, 5]].tolist() == [[1, 1, 1], [0, 0, 0]]


def test_of_a_linear_layers_input_the_second_axis_counts() -> None:
    layers = [conv("conv", (4, 4), (3, 3), (1, 1), (10, 10)), linear("flat", 40, 4), linear("tokens", 40, 4, rows=20)]
    assert layer_features(layers)[:, 5] == pytest.approx([1, 20 / 80, 0])


def test_a_convolution_of_one_input_channel_is_depthwise_and_a_linear_layer_never() -> None:
    layers = [conv("grey", (1, 8), (3, 3), (1, 1), (8, 8)), linear("one", 1, 8), linear("linear", 8, 2)]
    assert layer_features(layers)[:, 7].tolist() == [1, 0, 0]


def test_what_is_the_same_in_all_layers_is_zero() -> None:
    features = layer_features([LAYERS[0]] * 3)
    assert features[:, 1:].tolist() == [[0] * 7] * 3
    assert features[:, 0].tolist() == [0, 0.5, 1]
    assert layer_features(LAYERS[:1]).tolist() == [[0] * 8]


def test_the_previous_width_is_a_share_of_the_widest_and_starts_at_one() -> None:
    env = make_env()
    widths = [5, 3, 2, 8, 6, 4]
    policy = BitPolicy({layer.name: LayerBits(*widths[2 * i : 2 * i + 2]) for i, layer in enumerate(LAYERS)})
    episode = env.transitions(policy)
    expected = [[*ROWS[i // 2], 1 - i % 2, share] for i, share in enumerate([1, 5 / 8, 3 / 8, 2 / 8, 8 / 8, 6 / 8])]
    assert episode.observations == pytest.approx(np.array(expected, np.float32))
    assert episode.next_observations == pytest.approx(np.array([*expected[1:], expected[-1]], np.float32))
    assert env.observation_space.contains(env.reset()[0])


def test_pinned_layers_are_skipped_but_scale_the_features() -> None:
    env = make_env({"conv": LayerBits(8, 8), "linear": LayerBits(8, 8)})
    first, _ = env.reset()
    assert (env.decisions, env.steps) == (1, 2)
    assert first == pytest.approx(np.array([*ROWS[1], 1, 1], np.float32))


def test_every_episode_starts_from_the_same_observation() -> None:
    env = make_env()
    first, _ = env.reset()
    for _ in range(env.steps):
        env.step(np.array([-1.0], np.float32))
    assert np.array_equal(env.reset()[0], first)


def test_the_widest_candidate_of_either_field_is_one() -> None:
    env = make_env(a_bits=(2, 4))
    env.reset()
    env.step(np.array([-1.0], np.float32))
    after_activations = env.step(np.array([1.0], np.float32))[0]
    assert after_activations[9] == pytest.approx(4 / 8)
