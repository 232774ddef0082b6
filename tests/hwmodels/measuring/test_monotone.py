from itertools import combinations_with_replacement

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn.isotonic import IsotonicRegression

from haq.hwmodels.measuring.monotone import monotone

Floats = npt.NDArray[np.float64]

VALUES = st.floats(-1e6, 1e6)
CUBES = arrays(np.float64, array_shapes(min_dims=1, max_dims=3, max_side=5), elements=VALUES)
GRIDS = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=5), elements=VALUES)


def raised(costs: Floats) -> Floats:
    """The cheapest way to make an array monotone: the running maximum along every axis."""
    for axis in range(costs.ndim):
        costs = np.maximum.accumulate(costs, axis)
    return costs


def upper_sets(rows: int, columns: int) -> Floats:
    """Indicators of all sets that hold, with a cell, every later one: a staircase each, `(sets, rows · columns)`."""
    stairs = np.array(list(combinations_with_replacement(range(columns, -1, -1), rows)))
    return (np.arange(columns) >= stairs[:, :, None]).reshape(len(stairs), -1).astype(np.float64)


@settings(deadline=None)
@given(costs=CUBES)
def test_no_axis_falls(costs: Floats) -> None:
    fitted = monotone(costs)
    assert fitted.shape == costs.shape
    assert all((np.diff(fitted, axis=axis) >= 0).all() for axis in range(costs.ndim))


@settings(deadline=None)
@given(costs=CUBES)
def test_what_is_monotone_stays(costs: Floats) -> None:
    costs = raised(costs)
    np.testing.assert_allclose(monotone(costs), costs, rtol=1e-12)


@settings(deadline=None)
@given(costs=CUBES)
def test_fitting_twice_changes_nothing(costs: Floats) -> None:
    once = monotone(costs)
    np.testing.assert_allclose(monotone(once), once, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(costs=GRIDS, other=GRIDS)
def test_no_monotone_array_is_nearer(costs: Floats, other: Floats) -> None:
    def distance(fit: Floats) -> float:
        return float(np.square(fit - costs).sum())

    slack = 1e-6 * max(float(np.square(costs).sum()), 1.0)
    nearest = distance(monotone(costs))
    rivals = [raised(costs), np.full_like(costs, costs.mean()), np.sort(costs, axis=None).reshape(costs.shape)]
    rivals += [raised(np.resize(other, costs.shape)), -raised(-costs[::-1, ::-1])[::-1, ::-1]]
    assert all(nearest <= distance(rival) + slack for rival in rivals)


@settings(deadline=None)
@given(costs=GRIDS)
def test_it_is_the_projection(costs: Floats) -> None:
    """A projection f onto a convex cone has ⟨c − f, f⟩ = 0 and ⟨c − f, g⟩ ≤ 0 for all g of the cone.

    Upper sets, and a constant of either sign, span the monotone arrays.
    """
    fitted = monotone(costs)
    left = (costs - fitted).ravel()
    scale = max(float(np.abs(costs).max()), 1.0)
    assert (upper_sets(*costs.shape) @ left).max() <= 1e-5 * scale
    assert left.sum() == pytest.approx(0, abs=1e-5 * scale)
    assert left @ fitted.ravel() == pytest.approx(0, abs=1e-5 * scale**2)


@settings(deadline=None)
@given(costs=arrays(np.float64, st.integers(1, 30), elements=VALUES))
def test_a_row_is_isotonic_regression(costs: Floats) -> None:
    expected = IsotonicRegression().fit_transform(np.arange(len(costs)), costs)
    np.testing.assert_allclose(monotone(costs[None])[0], expected, rtol=1e-9, atol=1e-6)


def test_published_example() -> None:
    """Sizes of pituitary fissures at ages 8, 10, 12 and 14 (Potthoff, Roy 1964), the usual example of textbooks."""
    ages = [np.mean(sizes) for sizes in ([21, 23.5, 23], [24, 21, 25], [21.5, 22, 19], [23.5, 25])]
    assert monotone(np.array(ages)) == pytest.approx([200 / 9, 200 / 9, 200 / 9, 24.25])


def test_the_order_of_axes_does_not_matter() -> None:
    costs = np.random.default_rng(0).normal(size=(8, 8))
    np.testing.assert_allclose(monotone(costs.T).T, monotone(costs), rtol=1e-6, atol=1e-7)
