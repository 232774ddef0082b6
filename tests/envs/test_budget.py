import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.constraints import Constraint
from haq.envs import Budget
from haq.errors import ConstraintError
from haq.hwmodels import CostTable
from haq.metrics import format_cost
from haq.policy import BitPolicy, LayerBits

from .conftest import WIDTHS, make_layers, make_table

PINNED = {"conv0": LayerBits(8, 8)}


def budget(share: float, count: int = 4, pinned: dict[str, LayerBits] | None = None) -> Budget:
    return Budget(make_table(count), [Constraint("latency", share, relative=True)], WIDTHS, pinned or {})


def policies(count: int) -> st.SearchStrategy[BitPolicy]:
    width = st.sampled_from(WIDTHS)
    return st.lists(st.builds(LayerBits, width, width), min_size=count, max_size=count).map(
        lambda bits: BitPolicy({f"conv{i}": b for i, b in enumerate(bits)})
    )


@settings(deadline=None)
@given(policies(4), st.floats(0.0626, 1.0), st.floats(0.2501, 1.0))
def test_decrease_meets_every_limit_and_never_raises_a_width(policy: BitPolicy, latency: float, size: float) -> None:
    limits = [Constraint("latency", latency, relative=True), Constraint("size", size, relative=True)]
    both = Budget(make_table(4), limits, WIDTHS, {})
    result = both.decrease(policy)
    cost = both.table.cost(result)
    assert all(cost[limit.field] <= limit.limit for limit in both.constraints)
    assert all(result[name].w_bits <= policy[name].w_bits for name in policy)  # type: ignore[operator]
    assert all(result[name].a_bits <= policy[name].a_bits for name in policy)  # type: ignore[operator]
    if both.allows(policy):
        assert result == policy


def test_decrease_takes_the_steps_of_haqs_public_code() -> None:
    """One bit at a time, from the last layer to the first, activations before weights, until it fits; then again.

    Each of three layers costs w·a ms, so every step leaves a sum of its own: 192, 184, 177, 169, 162, 154, 147, 140.
    """
    widths, names = tuple(range(2, 9)), ("one", "two", "three")
    products = np.stack([np.outer(widths, widths).astype(float)] * 3)
    table = CostTable("products", 1, names, widths, widths, {"latency_ms": products}, "modelled", "test")
    steps = [
        ((8, 8), (8, 8), (8, 8)),
        ((8, 8), (8, 8), (8, 7)),
        ((8, 8), (8, 8), (7, 7)),
        ((8, 8), (8, 7), (7, 7)),
        ((8, 8), (7, 7), (7, 7)),
        ((8, 7), (7, 7), (7, 7)),
        ((7, 7), (7, 7), (7, 7)),
        ((7, 7), (7, 7), (7, 6)),
    ]
    for pairs in steps:
        expected = BitPolicy({name: LayerBits(*pair) for name, pair in zip(names, pairs, strict=True)})
        exactly = Constraint("latency", float(sum(w * a for w, a in pairs)))
        fitted = Budget(table, [exactly], widths, {})
        assert fitted.decrease(fitted.uniform(8)) == expected


def test_decrease_leaves_out_widths_at_their_lowest_and_pinned_layers() -> None:
    """After a pinned layer, 3/2 and 2/8 bits: only the last layer's inputs and the second's weights can go down."""
    widths, names = (2, 3, 8), ("one", "two", "three")
    products = np.stack([np.outer(widths, widths).astype(float)] * 3)
    table = CostTable("products", 1, names, widths, widths, {"latency_ms": products}, "modelled", "test")
    start = BitPolicy({"one": LayerBits(8, 8), "two": LayerBits(3, 2), "three": LayerBits(2, 8)})
    for limit, second, third in ((76.0, (3, 2), (2, 3)), (75.0, (2, 2), (2, 3)), (72.0, (2, 2), (2, 2))):
        fitted = Budget(table, [Constraint("latency", limit)], widths, {"one": LayerBits(8, 8)})
        expected = {"one": LayerBits(8, 8), "two": LayerBits(*second), "three": LayerBits(*third)}
        assert fitted.decrease(start) == BitPolicy(expected)


def test_pinned_layers_are_left_alone() -> None:
    fitted = budget(0.5, pinned=PINNED)
    assert fitted.decrease(fitted.uniform(8))["conv0"] == LayerBits(8, 8)


def test_an_impossible_limit_names_the_smallest_reachable_value() -> None:
    table = make_table(4)
    smallest = table.cost(BitPolicy.uniform(list(table.layers), 2))["latency_ms"]
    with pytest.raises(ConstraintError, match="the smallest reachable latency is") as error:
        Budget(table, [Constraint("latency", smallest * 0.99)], WIDTHS, {})
    assert format_cost("latency_ms", smallest) in str(error.value)
    Budget(table, [Constraint("latency", smallest)], WIDTHS, {})


@pytest.mark.parametrize("width", [2, 3, 4])
def test_an_average_width_can_be_met_exactly(width: int) -> None:
    table = CostTable.footprint(make_layers(7), (2, 3, 4, 8))
    ends = dict.fromkeys(("conv0", "conv6"), LayerBits(width, None))
    fitted = Budget(table, [Constraint("bits", float(width))], (width, 8), ends, weights_only=True)
    assert fitted.decrease(fitted.uniform(8)) == fitted.uniform(width)
    assert fitted.spend(fitted.uniform(width)) == fitted.uniform(width)


def test_average_widths_count_pinned_layers_and_are_shares_of_eight_bits() -> None:
    table = CostTable.footprint(make_layers(4), (2, 8))
    assert Budget(table, [Constraint("bits", 0.6, relative=True)], (2, 8), {}, weights_only=True).limit("bits") == 4.8
    weights = [layer.params for layer in make_layers(4)]
    least = 2 + 6 * weights[0] / sum(weights)
    pinned = {"conv0": LayerBits(8, None)}
    with pytest.raises(
        ConstraintError, match=f"meets bits ≤ 2.01 bits: the smallest reachable bits is {least:.2f} bits"
    ):
        Budget(table, [Constraint("bits", 2.01)], (2, 8), pinned, weights_only=True)
    Budget(
        table, [Constraint("bits", least), Constraint("size", 0.9, relative=True)], (2, 8), pinned, weights_only=True
    )


# Hardware that does not run every pair of widths

DIAGONAL = (LayerBits(2, 2), LayerBits(4, 4), LayerBits(8, 8))
INT8 = (LayerBits(4, 8), LayerBits(8, 8), LayerBits(8, 16))


def picky(pairs: tuple[LayerBits, ...], share: float, count: int = 3) -> Budget:
    """A budget on a table that prices only `pairs`."""
    w_bits, a_bits = (tuple(sorted({getattr(pair, name) for pair in pairs})) for name in ("w_bits", "a_bits"))
    cells = [[LayerBits(w, a) in pairs for a in a_bits] for w in w_bits]
    product = np.where(cells, np.outer(w_bits, a_bits).astype(float), np.inf)
    names = tuple(f"conv{i}" for i in range(count))
    table = CostTable(
        "picky", 1, names, w_bits, a_bits, {"latency_ms": np.stack([product] * count)}, "modelled", "test"
    )
    return Budget(table, [Constraint("latency", share, relative=True)], (2, 4, 8, 16), {})


@pytest.mark.parametrize("pairs", [DIAGONAL, INT8])
@given(data=st.data(), share=st.floats(0.5, 2.0))
def test_illegal_pairs_are_never_proposed(pairs: tuple[LayerBits, ...], data: st.DataObject, share: float) -> None:
    fitted = picky(pairs, share)
    chosen = data.draw(st.lists(st.sampled_from(pairs), min_size=3, max_size=3))
    policy = fitted.decrease(BitPolicy({f"conv{i}": pair for i, pair in enumerate(chosen)}))
    assert fitted.allows(policy)
    assert fitted.allows(fitted.spend(policy))
    assert set(fitted.spend(policy).values()) <= set(pairs)


def test_equal_widths_become_the_nearest_legal_ones() -> None:
    fitted = picky(INT8, 1.0)
    assert fitted.uniform(4)["conv0"] == LayerBits(4, 8)
    assert fitted.uniform(8)["conv0"] == LayerBits(8, 8)
    assert (fitted.bits, fitted.widths("a_bits"), fitted.widths("a_bits", 4)) == ((4, 8), (8, 16), (8,))


def test_the_lowest_limit_of_a_metric_counts() -> None:
    table = make_table(4)
    limits = [Constraint("latency", 0.9, relative=True), Constraint("latency", 1.0, origin="toy holds no more")]
    assert Budget(table, limits, WIDTHS, {}).constraints == (limits[1],)


# Rules: ties, and candidates of a layer's own

OWN = {"conv3": (LayerBits(4, 8), LayerBits(8, 8))}


def ruled(share: float, **pinned: LayerBits) -> Budget:
    limits = [Constraint("latency", share, relative=True), Constraint("size", share, relative=True)]
    return Budget(make_table(6), limits, WIDTHS, pinned, candidates=OWN, ties=[("conv4", "conv1"), ("conv0", "conv2")])


def test_decisions_are_in_the_order_of_their_first_layers() -> None:
    fitted = ruled(0.6, conv5=LayerBits(8, 8))
    assert fitted.decisions == (("conv0", "conv2"), ("conv1", "conv4"), ("conv3",))
    assert fitted.candidates("conv5") == (LayerBits(8, 8),)
    assert (fitted.widths("w_bits", layer="conv3"), fitted.widths("a_bits", 4, "conv3")) == ((4, 8), (8,))
    assert fitted.tightened([]).decisions == fitted.decisions


@settings(deadline=None)
@given(st.floats(0.35, 1.0), st.data())
def test_fitting_keeps_ties_and_own_candidates(share: float, data: st.DataObject) -> None:
    fitted = ruled(share)
    pairs = {layers: data.draw(st.sampled_from(fitted.candidates(layers[0]))) for layers in fitted.decisions}
    chosen = {name: pair for layers, pair in pairs.items() for name in layers}
    policy = BitPolicy({name: chosen[name] for name in fitted.table.layers})
    for found in (fitted.decrease(policy), fitted.spend(fitted.decrease(policy)), fitted.uniform(2), fitted.uniform(8)):
        assert fitted.fault(found) is None
    assert fitted.allows(fitted.spend(fitted.decrease(policy)))


def test_a_tie_is_lowered_as_one_in_the_place_of_its_first_layer() -> None:
    widths, names = (2, 4, 8), ("one", "two", "three")
    products = np.stack([np.outer(widths, widths).astype(float)] * 3)
    table = CostTable("products", 1, names, widths, widths, {"latency_ms": products}, "modelled", "test")
    for limit, one, two in ((144.0, (8, 8), (4, 4)), (136.0, (8, 8), (2, 4)), (72.0, (8, 4), (2, 4))):
        fitted = Budget(table, [Constraint("latency", limit)], widths, {}, ties=[("one", "three")])
        expected = {"one": LayerBits(*one), "two": LayerBits(*two), "three": LayerBits(*one)}
        start = BitPolicy({**expected, "two": LayerBits(4, 8), "one": LayerBits(8, 8), "three": LayerBits(8, 8)})
        assert fitted.decrease(start) == BitPolicy(expected)


def test_what_the_rules_do_not_allow_is_named() -> None:
    fitted = ruled(1.0)
    eight = fitted.uniform(8)
    assert fitted.fault(BitPolicy({**eight, "conv3": LayerBits(2, 8)})) == (
        "2/8 bits (weights/activations) for layer 'conv3', which is no candidate; the search allows 4,8/8"
    )
    assert fitted.fault(BitPolicy({**eight, "conv2": LayerBits(4, 8)})) == (
        "different widths for layers 'conv0' and 'conv2', which are tied"
    )


def test_uniform_widths_are_as_near_as_candidates_allow_but_those_to_compare_with_are_uniform() -> None:
    table = make_table(3)
    fitted = Budget(table, [], (2, 4), {}, candidates={"conv1": (LayerBits(8, 4), LayerBits(8, 8))})
    assert [fitted.uniform(2)[name] for name in table.layers] == [LayerBits(2, 2), LayerBits(8, 4), LayerBits(2, 2)]
    assert set(fitted.uniform8.values()) == {LayerBits(8, 8)}


def test_ties_of_unlike_layers_are_refused() -> None:
    for ties, pinned in (
        ([("conv1", "conv3")], {}),
        ([("conv0", "conv1"), ("conv1", "conv2")], {}),
        ([("conv0", "conv1")], PINNED),
    ):
        with pytest.raises(ValueError, match="tied layers must have the same candidates"):
            Budget(make_table(4), [], WIDTHS, pinned, candidates=OWN, ties=ties)
