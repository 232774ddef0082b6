from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from haq.quant.quantizers import clustering
from haq.quant.quantizers.clustering import kmeans
from haq.quant.quantizers.granularity import group
from haq.quant.schemes import get_scheme
from haq.quant.schemes.kmeans import KMeansQuantizer

# Few values, so that some are equal; a quarter is exact in floating point
VALUES = st.lists(st.integers(-8, 8).map(lambda number: number / 4), min_size=1, max_size=8)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(values: Tensor, centroids: Tensor, weights: Tensor | None = None) -> float:
    """Returns the weighted squared distances of `(n,)` values from the nearest centroids."""
    squares = (values.double()[:, None] - centroids.double()).abs().amin(1).square()
    return float((squares if weights is None else squares * weights).sum())


def least_error(values: Tensor, clusters: int, weights: Tensor) -> float:
    """Tries every way of cutting the sorted values into intervals."""
    order = values.argsort()
    x, w = values[order].double().numpy(), weights[order].double().numpy()
    n = len(x)

    def spread(start: int, end: int) -> float:
        mean = np.average(x[start:end], weights=w[start:end])
        return float((w[start:end] * (x[start:end] - mean) ** 2).sum())

    known = {(start, end): spread(start, end) for end in range(1, n + 1) for start in range(end)}
    cuts = combinations_with_replacement(range(n + 1), clusters - 1)
    return min(sum(known.get(ends, 0.0) for ends in pairwise((0, *cut, n))) for cut in cuts)


@settings(deadline=None)
@given(VALUES, st.integers(1, 4), st.data())
def test_no_clusters_are_better(values: list[float], clusters: int, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.floats(0.01, 100), min_size=len(values), max_size=len(values)))
    x, weights = torch.tensor(values), torch.tensor(drawn, dtype=torch.float64)
    for given_weights in (None, weights):
        counted = torch.ones_like(weights) if given_weights is None else weights
        found = kmeans(x[None], clusters, None if given_weights is None else weights[None])[0]
        assert error(x, found, counted) == pytest.approx(least_error(x, clusters, counted), abs=1e-5)


@pytest.mark.parametrize("clusters", [2, 4, 8, 16])
def test_ten_restarts_of_lloyds_algorithm_are_never_better(clusters: int) -> None:
    """Also for channels of different spread, as in real layers, for which evenly spaced centroids are bad."""
    spread = random(16, 60) * torch.logspace(-2, 0, 16)[:, None]
    for x in (random(800), random(800).sign() * random(800, seed=1).square(), spread.flatten()):
        theirs = KMeans(clusters, n_init=10, tol=0, random_state=0).fit(x[:, None].double().numpy())
        ours = kmeans(x[None], clusters)[0]
        assert error(x, ours) <= error(x, torch.from_numpy(theirs.cluster_centers_[:, 0])) * (1 + 1e-6)


def test_a_weight_of_three_counts_like_three_values() -> None:
    x, weights = random(1, 40), torch.randint(1, 4, (1, 40), generator=torch.Generator().manual_seed(0))
    repeated = x.repeat_interleave(weights[0], dim=1)
    torch.testing.assert_close(kmeans(x, 5, weights.double()), kmeans(repeated, 5))


def test_every_row_is_solved_alone() -> None:
    x, weights = random(6, 50) + torch.arange(6)[:, None] * 10, random(6, 50, seed=1).abs()
    alone = [kmeans(x[row : row + 1], 4, weights[row : row + 1]) for row in range(6)]
    assert torch.equal(kmeans(x, 4, weights), torch.cat(alone))


def test_centroids_are_ascending_and_equal_where_there_are_too_few_values() -> None:
    x = torch.tensor([[1.0, 1.0, 3.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    found = kmeans(x, 4)
    assert bool((found.diff(dim=1) >= 0).all())
    assert [sorted(set(row)) for row in found.tolist()] == [[1.0, 3.0], [2.0], [0.0]]
    torch.testing.assert_close(kmeans(x, 1)[:, 0], x.mean(1))
    assert kmeans(torch.tensor([[5.0]]), 256).unique().tolist() == [5.0]


def test_a_large_offset_costs_no_digits() -> None:
    x = random(1, 300)
    torch.testing.assert_close(kmeans(x.double() + 1e6, 8) - 1e6, kmeans(x.double(), 8), atol=1e-6, rtol=0)


def test_weights_of_zero_leave_the_others_as_they_are() -> None:
    x = torch.tensor([[0.0, 1.0, 10.0, 11.0, 500.0]])
    torch.testing.assert_close(
        kmeans(x, 2, torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]])), torch.tensor([[0.5, 10.5]]), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(kmeans(x, 3, torch.zeros_like(x)), kmeans(x, 3))


@pytest.mark.parametrize("clusters", [4, 64])
def test_long_rows_are_solved_among_some_places_only(clusters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dense middle and outliers are both covered: the error is within 0.01 % of a search over all places."""
    for x in (random(1, 20_000), random(1, 20_000) * torch.where(random(1, 20_000, seed=1) > 2.3, 1000.0, 1.0)):
        monkeypatch.setattr(clustering, "_MOST_BORDERS", 2**13)
        some = kmeans(x, clusters)
        monkeypatch.setattr(clustering, "_MOST_BORDERS", len(x[0]))
        assert error(x[0], some[0]) <= 1.0001 * error(x[0], kmeans(x, clusters)[0])


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:4", "column"])
@pytest.mark.parametrize("shape", [(6, 8), (6, 4, 2, 1)])
def test_errors_count_by_what_the_layer_reads(granularity: str, shape: tuple[int, ...]) -> None:
    """Each group of a convolution has its own columns: output channels 0 to 2 read those of the first group."""
    weight, reads = random(*shape), random(2, 8, 30, seed=1) * torch.logspace(-2, 1, 8)[:, None]
    scheme = get_scheme("kmeans", granularity=granularity)
    quantizer = scheme.weight_quantizer(weight, 1, reads)
    assert isinstance(quantizer, KMeansQuantizer)
    moments = torch.stack([reads[0 if channel < 3 else 1].square().mean(1) for channel in range(6)]).reshape(shape)
    rows, counted = group(weight, granularity), group(moments, granularity)
    for row, count, centroids in zip(rows, counted, quantizer.levels().detach(), strict=True):
        assert error(row, centroids, count) == pytest.approx(least_error(row, 2, count), rel=1e-4)
    plain = scheme.weight_quantizer(weight, 1)
    assert not torch.allclose(plain.levels(), quantizer.levels())  # type: ignore[operator]


def test_codes_are_of_the_nearest_centroid() -> None:
    weight = random(10, 20)
    quantizer = KMeansQuantizer(weight, 3)
    centroids = quantizer.levels().detach()[0].numpy()
    nearest = np.abs(weight.numpy()[..., None] - centroids).argmin(-1)
    assert (quantizer.codes(weight).numpy() == nearest).all()
