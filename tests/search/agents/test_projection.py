"""The integer programme and the projection, against enumeration of all policies."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from haq.constraints import Constraint
from haq.envs import Budget
from haq.policy import BitPolicy, LayerBits
from haq.search.agents.lattice import Lattice
from haq.search.agents.programme import Penalties, allocate
from haq.search.agents.projection import Projection
from tests.envs.conftest import WIDTHS, make_table

PAIRS = tuple(LayerBits(w, a) for w in WIDTHS for a in WIDTHS)


def budget(latency: float, size: float = 1.0, pinned: dict[str, LayerBits] | None = None, layers: int = 3) -> Budget:
    limits = [Constraint("latency", latency, relative=True), Constraint("size", size, relative=True)]
    return Budget(make_table(layers), limits, WIDTHS, pinned or {})


def penalties(budget: Budget, seed: int = 0) -> Penalties:
    """Each layer has its own loss per width, for weights and activations."""
    rng = np.random.default_rng(seed)
    rates = {name: rng.uniform(0.1, 3.0, 2) for name in budget.table.layers}
    return {
        name: {pair: float(w * 4.0 ** -(pair.w_bits or 0) + a * 4.0 ** -(pair.a_bits or 0)) for pair in budget.pairs}
        for name, (w, a) in rates.items()
    }


def total(policy: BitPolicy, of: Penalties, free: list[str]) -> float:
    return sum(of[name][policy[name]] for name in free)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.1, 1.0), st.floats(0.3, 1.0), st.integers(0, 5), st.booleans())
def test_the_programme_is_optimal(latency: float, size: float, seed: int, pin: bool) -> None:
    limits = budget(latency, size, {"conv0": LayerBits(8, 8)} if pin and min(latency, size) > 0.75 else None)
    of = penalties(limits, seed)
    free = [name for name in limits.table.layers if name not in limits.pinned]
    found = allocate(limits, of)
    every = (
        BitPolicy({**limits.pinned, **dict(zip(free, pairs, strict=True))})
        for pairs in itertools.product(PAIRS, repeat=len(free))
    )
    best = min(total(policy, of, free) for policy in every if limits.allows(policy))
    assert found is not None
    assert limits.allows(found)
    assert total(found, of, free) <= best * 1.001 + 1e-9


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(PAIRS), min_size=3, max_size=3),
    st.floats(0.1, 1.0),
    st.floats(0.3, 1.0),
    st.integers(0, 5),
)
@example([LayerBits(2, 2)] * 3, 1.0, 0.9999999999999999, 0)  # as below
def test_projected_policies_fit_and_leave_nothing_to_spend(
    pairs: list[LayerBits], latency: float, size: float, seed: int
) -> None:
    limits = budget(latency, size)
    projection = Projection(limits, penalties(limits, seed))
    start = BitPolicy({f"conv{i}": pair for i, pair in enumerate(pairs)})
    policy = projection.fit(projection.indices(start))
    assert limits.allows(policy)
    for name, field in itertools.product(policy, limits.fields):
        wider = limits.step(name, policy[name], field, up=True)
        assert wider is None or not limits.allows(BitPolicy({**policy, name: wider}))


def test_indices_and_policies_are_each_others_inverse() -> None:
    limits = budget(0.5, pinned={"conv1": LayerBits(8, 8)})
    projection = Projection(limits, penalties(limits))
    policy = limits.uniform(4)
    assert projection.policy(projection.indices(policy)) == policy
    assert projection.decisions == (("conv0",), ("conv2",))


def test_over_budget_the_cheapest_loss_goes_first() -> None:
    limits = budget(0.99)
    lost = {pair: float(-(pair.w_bits or 0) - (pair.a_bits or 0)) for pair in PAIRS}
    even = dict.fromkeys(limits.table.layers, lost)
    even["conv1"] = {pair: 0.01 * value for pair, value in even["conv1"].items()}
    policy = Projection(limits, even).fit(Projection(limits, even).indices(limits.uniform(8)))
    assert policy["conv0"] == policy["conv2"] == LayerBits(8, 8)
    assert policy["conv1"] != LayerBits(8, 8)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.floats(0.1, 1.0), st.floats(0.3, 1.0), st.booleans())
def test_fitting_many_policies_equals_fitting_each_alone(seed: int, latency: float, size: float, spend: bool) -> None:
    limits = budget(latency, size, layers=5)
    projection = Projection(limits, penalties(limits, seed))
    policies = projection.random(np.random.default_rng(seed), 6)
    together = projection.fit_all(policies, spend)
    for alone, fitted in zip(policies, together, strict=True):
        assert np.array_equal(projection.fit_all(alone[None], spend)[0], fitted)
        assert limits.allows(projection.settled(fitted))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.floats(0.1, 1.0), st.floats(0.3, 1.0))
@example(0, 1.0, 0.9999999999999999)  # sums in units of the limit round away that the widest policy exceeds it
def test_random_steps_end_inside_the_budget_with_nothing_left_to_spend(seed: int, latency: float, size: float) -> None:
    limits = budget(latency, size, layers=4)
    lattice, rng = Lattice(limits), np.random.default_rng(seed)
    policy = lattice.wandered(lattice.random(rng)[0], rng)
    assert limits.allows(policy)
    for name, field in itertools.product(policy, limits.fields):
        wider = limits.step(name, policy[name], field, up=True)
        assert wider is None or not limits.allows(BitPolicy({**policy, name: wider}))


def test_totals_are_costs_in_units_of_the_limits() -> None:
    limits = budget(0.5, 0.7, pinned={"conv1": LayerBits(8, 8)})
    lattice = Lattice(limits)
    policy = limits.uniform(4)
    cost = limits.table.cost(policy)
    expected = [cost[limit.field] / limit.limit for limit in limits.constraints]
    assert lattice.totals(lattice.indices(policy)[None])[:, 0] == pytest.approx(expected)


def test_the_programme_leaves_out_excluded_policies() -> None:
    limits = budget(0.5)
    of = penalties(limits)
    found: list[BitPolicy] = []
    for _ in range(5):
        policy = allocate(limits, of, found)
        assert policy is not None
        assert policy not in found
        found.append(policy)
    totals = [total(policy, of, list(limits.table.layers)) for policy in found]
    assert totals == pytest.approx(sorted(totals), rel=1e-3)
