import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.envs import action_of, width_of

candidates = st.sets(st.integers(1, 8), min_size=1).map(lambda widths: tuple(sorted(widths)))


def test_equation_3_of_the_paper() -> None:
    """With b_min = 2 and b_max = 8, each of seven widths has a seventh of the range (arXiv:1811.08886, eq. 3)."""
    widths = tuple(range(2, 9))
    shares = [(k + 0.5) / 7 for k in range(7)]
    assert [width_of(2 * share - 1, widths) for share in shares] == list(widths)
    assert width_of(2 * (1 / 7 - 0.01) - 1, widths) == 2
    assert width_of(2 * (1 / 7 + 0.01) - 1, widths) == 3


@given(candidates, st.floats(-1.5, 1.5))
def test_every_action_gives_a_candidate(widths: tuple[int, ...], action: float) -> None:
    assert width_of(action, widths) in widths


@given(candidates)
def test_inverse(widths: tuple[int, ...]) -> None:
    for width in widths:
        action = action_of(width, widths)
        assert -1 < action < 1
        assert width_of(action, widths) == width


@given(candidates, st.floats(-1, 1), st.floats(-1, 1))
def test_larger_actions_never_give_smaller_widths(widths: tuple[int, ...], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert width_of(low, widths) <= width_of(high, widths)


@pytest.mark.parametrize("action", [0.0])
def test_a_tie_goes_to_the_lower_width(action: float) -> None:
    assert width_of(action, (4, 6)) == 4
