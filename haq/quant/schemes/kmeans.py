"""Deep Compression: weights share the centroids of a k-means clustering."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from haq.quant.codebook import CodebookQuantizer
from haq.quant.granularity import group
from haq.quant.quantizer import check_values
from haq.quant.schemes.base import Scheme

__all__ = ["KMEANS", "KMeansQuantizer", "kmeans"]

_MOST_ROUNDS = 300


def kmeans(rows: Tensor, clusters: int) -> Tensor:
    """Clusters the values of each row, exactly as Lloyd's algorithm does, from evenly spaced centroids.

    In one dimension a cluster is an interval of the sorted values, so its sum is a difference of two prefix sums, and a
    round costs O(k·log n) after one sort. Evenly spaced centroids keep the few large weights that matter most (Han et
    al. 2016, section 3.2).

    Args:
        rows: `(groups, n)`.
        clusters: k.

    Returns:
        Ascending centroids, `(groups, k)`; where a row has fewer distinct values, some stay where they began.
    """
    ordered = rows.double().sort(1).values.contiguous()
    sums = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))
    steps = torch.linspace(0, 1, clusters, dtype=torch.float64, device=rows.device)
    centroids = ordered[:, :1] + (ordered[:, -1:] - ordered[:, :1]) * steps
    for _ in range(_MOST_ROUNDS):
        boundaries = ((centroids[:, 1:] + centroids[:, :-1]) / 2).contiguous()
        inner = torch.searchsorted(ordered, boundaries, right=True)
        edges = torch.nn.functional.pad(inner, (1, 0))
        edges = torch.cat([edges, torch.full_like(edges[:, :1], rows.shape[1])], 1)
        counts = edges.diff(dim=1)
        means = sums.gather(1, edges).diff(dim=1) / counts.clamp_min(1)
        moved = torch.where(counts > 0, means, centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids.sort(1).values.to(rows.dtype)


class KMeansQuantizer(CodebookQuantizer):
    """A codebook of 2^bits centroids, fine-tuned with the weights.

    Args:
        values: The weight.
        bits: Width of an index.
        granularity: Which values share a codebook.
    """

    def __init__(self, values: Tensor, bits: int, *, granularity: str = "tensor") -> None:
        super().__init__(bits, granularity, signed=True)
        self.centroids = nn.Parameter(kmeans(group(check_values(values), granularity), 2**bits))

    def levels(self) -> Tensor:
        """Returns the centroids; fine-tuning may have let two of them pass each other."""
        return self.centroids.sort(1).values


KMEANS = Scheme(
    name="kmeans",
    title="Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding",
    arxiv="1510.00149",
    equation="section 3; in fine-tuning weights are also trained, and move to the centroid that is then nearest",
    weights=KMeansQuantizer,
    widths=(1, 2, 3, 4, 5, 6, 7, 8),
    trainable="centroids",
    kernels=("lookup",),
)
