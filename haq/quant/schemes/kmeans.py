"""Deep Compression: weights share the centroids of a k-means clustering."""

from __future__ import annotations

from torch import Tensor, nn

from haq.quant.quantizers.base import check_values
from haq.quant.quantizers.codebook import CodebookQuantizer
from haq.quant.quantizers.granularity import group
from haq.quant.schemes.base import Scheme

__all__ = ["KMEANS", "KMeansQuantizer"]


class KMeansQuantizer(CodebookQuantizer):
    """A codebook of 2^bits centroids that is optimal for these weights, and fine-tuned with them.

    Args:
        values: The weight.
        bits: Width of an index.
        reads: Samples of the columns that the weight is multiplied by, `(groups, n, samples)`. The error of each weight
            is then weighted by the mean square of its inputs, which gives the error of the layer's output if inputs are
            uncorrelated.
        granularity: Which values share a codebook.
    """

    def __init__(self, values: Tensor, bits: int, reads: Tensor | None = None, *, granularity: str = "tensor") -> None:
        from haq.quant.quantizers.clustering import kmeans

        super().__init__(bits, granularity, signed=True)
        values = check_values(values)
        moments = None if reads is None else group(_moments(values, reads), granularity)
        self.centroids = nn.Parameter(kmeans(group(values, granularity), 2**bits, moments))

    def levels(self) -> Tensor:
        """Returns the centroids, sorted, because they may overtake each other in fine-tuning."""
        return self.centroids.sort(1).values


def _moments(values: Tensor, reads: Tensor) -> Tensor:
    """Returns the mean square of each weight's inputs, in the shape of the weights."""
    moments = reads.square().mean(2)
    return moments.repeat_interleave(len(values) // len(moments), 0).reshape(values.shape)


KMEANS = Scheme(
    name="kmeans",
    title="Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding",
    arxiv="1510.00149",
    equation="section 3; centroids start as the best for the layer's output instead of evenly spaced; in fine-tuning "
    "weights are also trained, and move to the centroid that is then nearest",
    weights=KMeansQuantizer,
    widths=(1, 2, 3, 4, 5, 6, 7, 8),
    trainable="centroids",
    kernels=("lookup",),
)
