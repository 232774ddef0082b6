import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import HardwareError
from haq.hwmodels import CostTable, get_hardware
from haq.policy import BitPolicy, LayerBits

NAMES = ["conv1", "conv2.dw", "fc"]
METRICS = ["latency_ms", "energy_mj", "size_bytes", "bops"]  # of one layer, as the hardware prices it
BITS = st.builds(LayerBits, st.sampled_from([2, 4, 8]), st.sampled_from([3, 8]))
POLICIES = st.lists(BITS, min_size=3, max_size=3).map(lambda bits: BitPolicy(dict(zip(NAMES, bits, strict=True))))


@given(policy=POLICIES)
def test_costs_are_the_hardwares_own_summed(table, layers, policy):
    costs = [get_hardware("edge").cost(layer, policy[layer.name], batch=4) for layer in layers]
    for metric in METRICS:
        assert list(table.layer_costs(policy, metric)) == [cost[metric] for cost in costs]
        assert table.cost(policy)[metric] == pytest.approx(sum(cost[metric] for cost in costs))


@given(policies=st.lists(POLICIES, min_size=1, max_size=5))
def test_many_policies_at_once(table, policies):
    indices = [table.indices(policy) for policy in policies]
    w_index, a_index = (np.array(index) for index in zip(*indices, strict=True))
    for metric in METRICS:
        expected = [table.cost(policy)[metric] for policy in policies]
        assert list(table.totals(metric, w_index, a_index)) == expected


def test_the_order_of_the_policy_does_not_matter(table):
    bits = {"fc": LayerBits(2, 8), "conv1": LayerBits(8, 3), "conv2.dw": LayerBits(4, 8)}
    assert table.cost(BitPolicy(bits)) == table.cost(BitPolicy({name: bits[name] for name in NAMES}))
    w_index, a_index = table.indices(BitPolicy(bits))
    assert (list(w_index), list(a_index)) == ([2, 1, 0], [0, 1, 1])


def test_axes_are_sorted_and_metrics_read_only(table, layers):
    shuffled = CostTable.build(get_hardware("edge"), layers, (8, 2, 4, 2), [8, 3], batch=4)
    assert (shuffled.w_bits, shuffled.a_bits) == ((2, 4, 8), (3, 8))
    for metric in METRICS:
        assert np.array_equal(shuffled.metrics[metric], table.metrics[metric])
        assert table.metrics[metric].dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            table.metrics[metric][0] = 0


@pytest.mark.parametrize("metric", METRICS)
def test_bounds_are_reached_by_the_extreme_policies(table, metric):
    pinned = {"conv1": LayerBits(8, 8)}
    narrow = BitPolicy({name: pinned.get(name, LayerBits(2, 3)) for name in NAMES})
    low, high = table.bounds(metric, pinned)
    assert low == pytest.approx(table.cost(narrow)[metric])
    assert high == pytest.approx(table.cost(BitPolicy.uniform(NAMES, 8))[metric])
    assert table.bounds(metric)[0] <= low


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ({"w_bits": 3, "a_bits": 8}, "w_bits=3 for layer 'fc': the cost table of 'edge' covers 2,4,8; build it again"),
        ({"w_bits": 8, "a_bits": 2}, "a_bits=2 for layer 'fc': the cost table of 'edge' covers 3,8; build it again"),
        ({"w_bits": None, "a_bits": 8}, "w_bits=None (floating point) for layer 'fc'"),
    ],
)
def test_a_width_outside_the_table_is_an_error(table, bits, said):
    policy = BitPolicy({**BitPolicy.uniform(NAMES, 8), "fc": LayerBits(**bits)})
    with pytest.raises(HardwareError) as error:
        table.cost(policy)
    assert str(error.value).startswith(said)
    with pytest.raises(HardwareError):
        table.bounds("latency_ms", {"fc": LayerBits(**bits)})


def test_the_layers_must_be_exactly_the_tables(table):
    with pytest.raises(HardwareError, match=r"'conv2\.dx' of the policy .* \(did you mean 'conv2\.dw'\?\)"):
        table.cost(BitPolicy.uniform([*NAMES, "conv2.dx"], 8))
    with pytest.raises(HardwareError, match="'fc' of the cost table of 'edge' is not in the policy"):
        table.cost(BitPolicy.uniform(NAMES[:2], 8))
    with pytest.raises(HardwareError, match="pinned layer 'conv' is not in the cost table"):
        table.bounds("bops", {"conv": LayerBits(8, 8)})


def test_an_unknown_metric_is_an_error(table):
    with pytest.raises(HardwareError, match=r"no 'latency' \(did you mean 'latency_ms'\?\)"):
        table.bounds("latency")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"layers": ()}, "layers of distinct names"),
        ({"layers": ("conv1", "fc", "fc")}, "layers of distinct names"),
        ({"w_bits": ()}, "w_bits=[]"),
        ({"w_bits": (4, 2, 8)}, "w_bits=[4, 2, 8]: a cost table needs ascending widths"),
        ({"a_bits": (3, 9)}, "a_bits=[3, 9]"),
        ({"batch": 0}, "batch=0"),
        ({"origin": "guessed"}, "origin='guessed'"),
        ({"metrics": {}}, "at least one of latency_ms"),
        ({"metrics": {"latency": np.ones((3, 3, 2))}}, "'latency' is not a cost (did you mean 'latency_ms'?)"),
        ({"metrics": {"bops": np.ones((3, 2, 3))}}, "bops has shape (3, 2, 3), but"),
    ],
)
def test_a_wrong_table_is_refused(parts, spoil, said):
    with pytest.raises(HardwareError) as error:
        CostTable(**{**parts, **spoil})
    assert said in str(error.value)


@pytest.mark.parametrize("value", [np.nan, -np.inf, -1.0])
def test_a_wrong_cost_is_refused_by_name(parts, value):
    parts["metrics"]["energy_mj"][1, 2, 0] = value
    with pytest.raises(HardwareError, match=rf"energy_mj={value} for layer 'conv2\.dw' at w_bits=8, a_bits=3: "):
        CostTable(**parts)


def test_a_measured_table_may_lack_metrics(parts):
    table = CostTable(**{**parts, "metrics": {"latency_ms": parts["metrics"]["latency_ms"]}, "origin": "measured"})
    assert list(table.cost(BitPolicy.uniform(NAMES, 8))) == ["latency_ms"]


def test_building_is_fast(make_layer):
    layers = [make_layer(f"layer{index}") for index in range(50)]
    start = time.perf_counter()
    CostTable.build(get_hardware("edge"), layers, range(1, 9), range(1, 9))
    assert time.perf_counter() - start < 1
