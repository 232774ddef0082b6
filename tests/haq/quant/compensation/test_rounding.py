"""Rounding column by column: compared with a plain GPTQ and with all possible choices, and on every grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from haq.quant.compensation.rounding import Grid, as_columns, as_weight, damped, descend, diffuse, output_error
from haq.quant.quantizers.tensor import QuantizedTensor
from haq.quant.schemes import get_scheme

GRIDS = [
    ("linear", 3, "channel"),
    ("linear", 1, "channel"),
    ("linear", 2, "tensor"),
    ("linear", 3, "row"),
    ("linear", 3, "column"),
    ("linear", 3, "group:4"),
    ("linear", 1, "group:4"),
    ("asymmetric", 1, "channel"),
    ("asymmetric", 3, "group:4"),
    ("power-of-two", 3, "channel"),
    ("kmeans", 2, "tensor"),
    ("kmeans", 2, "channel"),
    ("ttq", 2, "channel"),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(groups: int, columns: int, samples: int, seed: int = 0) -> Tensor:
    """Returns second moments of correlated inputs, which share a few causes."""
    causes = random(groups, max(2, columns // 4), samples, seed=seed)
    x = random(groups, columns, causes.shape[1], seed=seed + 1) @ causes
    x = x + 0.3 * random(groups, columns, samples, seed=seed + 2)
    return damped(x @ x.transpose(1, 2) / samples, samples)


def stored(weight: Tensor, scheme: str, bits: int, granularity: str = "channel") -> QuantizedTensor:
    quantizer = get_scheme(scheme, granularity=granularity).weight_quantizer(weight, bits)
    return quantizer.encode(weight)


def nearest(target: Tensor, grid: Grid) -> Tensor:
    return torch.stack([grid.nearest(target[:, i], i) for i in range(target.shape[1])], 1)


def plain_gptq(target: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    """Rounds as in Optimal Brain Surgeon: each column is removed from H⁻¹, and the others compensate for its error."""
    rounded = torch.empty_like(target)
    for g in range(len(target)):
        inverse, rest = torch.linalg.inv(gram[g].double()), target[g].double().clone()
        for i in gram[g].diagonal().argsort(descending=True, stable=True).tolist():
            rounded[g, i] = level = grid.nearest(rest[None, i].float().expand(len(target), -1), i)[g]
            rest -= inverse[:, i, None] / inverse[i, i] * (rest[i] - level)
            inverse = inverse - inverse[:, i, None] @ inverse[None, i] / inverse[i, i]
            inverse[i, i] = 1  # this column is done; any number but 0
    return rounded


@pytest.mark.parametrize(("groups", "columns"), [(1, 5), (3, 12), (1, 64), (2, 65), (1, 150)])
def test_diffuse_is_gptq(groups: int, columns: int) -> None:
    weight = random(groups * 4, columns)
    gram = correlated(groups, columns, 4 * columns)
    grid, target = Grid.of(stored(weight, "linear", 3), groups), as_columns(weight, groups)
    ours, plain = diffuse(target, gram, grid), plain_gptq(target, gram, grid)
    # In single precision a value halfway between two levels may go either way, and the columns after it follow
    same = (ours - plain).abs().amax(1) < 1e-4
    assert float(same.float().mean()) > 0.7
    error, expected = output_error(target, ours, gram), output_error(target, plain, gram)
    assert float(error.sum()) == pytest.approx(float(expected.sum()), rel=0.05)


@pytest.mark.parametrize(("scheme", "bits", "granularity"), GRIDS[:-1])  # TTQ's zeros end at a threshold of its own
def test_grids_are_those_of_the_quantizers(scheme: str, bits: int, granularity: str) -> None:
    weight = random(6, 4, 3, 3)
    quantized = stored(weight, scheme, bits, granularity)
    for groups in (1, 2, 6):
        target = as_columns(weight, groups)
        found = as_weight(nearest(target, Grid.of(quantized, groups)), weight)
        torch.testing.assert_close(found, quantized.dequantize(), rtol=1e-5, atol=1e-6)
        assert torch.equal(as_weight(target, weight), weight)


@pytest.mark.parametrize(("scheme", "bits", "granularity"), GRIDS)
@pytest.mark.parametrize("groups", [1, 2])
def test_errors_fall_and_levels_stay_on_the_grid(scheme: str, bits: int, granularity: str, groups: int) -> None:
    weight = random(8, 36)
    quantizer = get_scheme(scheme, granularity=granularity).weight_quantizer(weight, bits)
    grid, target = Grid.of(quantizer.encode(weight), groups), as_columns(weight, groups)
    gram = correlated(groups, 36, 400)
    first = nearest(target, grid)
    for values in (diffuse(target, gram, grid), first):
        better = descend(target, values, gram, grid, passes=2)
        assert bool((output_error(target, better, gram) <= output_error(target, values, gram) * (1 + 1e-5)).all())
        assert float(output_error(target, better, gram).sum()) < float(output_error(target, first, gram).sum())
        on_grid = as_weight(better, weight)
        torch.testing.assert_close(quantizer(on_grid), on_grid, rtol=1e-5, atol=1e-6)


def against_all_choices(seed: int, bits: int, magnitude: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the errors of three rounded rows of four weights, of their neighbours, and of all possible choices."""
    weight = random(3, 4, seed=seed) * 2.0**magnitude
    gram = correlated(1, 4, 40, seed) * 2.0**-magnitude
    quantized = stored(weight, "linear", bits)
    grid, target = Grid.of(quantized, 1), as_columns(weight, 1)
    rounded = descend(target, diffuse(target, gram, grid), gram, grid, passes=10)
    codes = torch.tensor([-1.0, 1.0] if bits == 1 else list(range(-(2 ** (bits - 1)), 2 ** (bits - 1))))
    assert quantized.scale is not None
    choices = torch.cartesian_prod(*[codes] * 4)[:, None] * quantized.scale[None, :, None]  # (choices, rows, 4)
    errors = ((choices - weight) @ gram[0] * (choices - weight)).sum(2)
    moved = ((choices - as_weight(rounded, weight)).abs() > 1e-3 * quantized.scale[:, None]).sum(2)
    found = output_error(target, rounded, gram)[0]
    return found, torch.where(moved <= 1, errors, torch.inf).amin(0), errors.amin(0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 2), st.floats(-20, 13))
def test_no_other_level_of_one_weight_is_better(seed: int, bits: int, magnitude: float) -> None:
    found, neighbours, _ = against_all_choices(seed, bits, magnitude)
    assert bool((found <= neighbours * (1 + 1e-3)).all())


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_four_weights_come_near_the_best_of_all_choices(bits: int) -> None:
    found, _, best = (
        torch.cat(errors) for errors in zip(*(against_all_choices(s, bits) for s in range(40)), strict=True)
    )
    assert bool((found >= best * (1 - 1e-4)).all())
    assert float((found < best * 1.001).float().mean()) > 0.5
    assert float(found.sum()) < 1.3 * float(best.sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 140), st.integers(1, 5), st.integers(1, 5))
def test_descend_never_raises_the_error(seed: int, groups: int, columns: int, rows: int, samples: int) -> None:
    """This holds for every start, also with fewer samples than columns."""
    weight = random(groups * rows, columns, seed=seed)
    grid, target = Grid.of(stored(weight, "linear", 2), groups), as_columns(weight, groups)
    x = random(groups, columns, samples, seed=seed + 1)
    gram = damped(x @ x.transpose(1, 2) / samples, samples)
    start = nearest(random(*target.shape, seed=seed + 2), grid)
    before, after = (output_error(target, q, gram) for q in (start, descend(target, start, gram, grid)))
    assert bool((after <= before * (1 + 1e-4) + 1e-5).all())


@pytest.mark.parametrize("columns", [3, 70])
def test_independent_inputs_want_the_nearest_levels(columns: int) -> None:
    weight = random(5, columns)
    grid, target = Grid.of(stored(weight, "linear", 3), 1), as_columns(weight, 1)
    gram = torch.eye(columns)[None] * 2
    rounded = diffuse(target, gram, grid)
    assert torch.equal(rounded, nearest(target, grid))
    assert torch.equal(descend(target, rounded, gram, grid), rounded)


def test_two_equal_inputs_share_their_error() -> None:
    """Two values of 0.4 add up to 0.8, so one of them is rounded up."""
    gram = damped(torch.ones(1, 2, 2), 10_000)
    grid = Grid(*(torch.full((1, 1, 1), value) for value in (1.0, -2, 1, 0)))
    target = torch.full((1, 2, 1), 0.4)
    assert sorted(diffuse(target, gram, grid).flatten().tolist()) == [0, 1]
    assert sorted(descend(target, torch.zeros(1, 2, 1), gram, grid).flatten().tolist()) == [0, 1]


@pytest.mark.parametrize("value", [0.0, 1e-20, 1.0, 1e15])
def test_moments_always_get_an_inverse(value: float) -> None:
    for gram in (torch.full((2, 5, 5), value), torch.diag(torch.tensor([0, 0, 0, 0, value]))[None]):
        found = damped(gram, 10)
        assert bool(torch.isfinite(torch.linalg.inv(found.double())).all())
        assert bool((torch.linalg.eigvalsh(found.double()) > 0).all())


def test_moments_that_rounding_made_indefinite_get_an_inverse() -> None:
    broken = torch.tensor([[[1.0, 5.0], [5.0, 1.0]]])
    assert bool((torch.linalg.eigvalsh(damped(broken, 100).double()) > 0).all())
    negative = -torch.eye(3)[None]
    assert torch.equal(damped(negative, 100), torch.eye(3)[None])


def test_grids_beside_each_other_round_each_its_copy() -> None:
    weight = random(4, 9)
    quantized = [stored(weight, scheme, bits) for scheme, bits in (("linear", 2), ("asymmetric", 3), ("linear", 1))]
    target, gram = as_columns(weight, 2), correlated(2, 9, 90)
    grids = [Grid.of(part, 2) for part in quantized]
    together = diffuse(target.repeat(1, 1, 3), gram, Grid.beside(grids)).split(target.shape[2], 2)
    for grid, rounded in zip(grids, together, strict=True):
        torch.testing.assert_close(rounded, diffuse(target, gram, grid))
