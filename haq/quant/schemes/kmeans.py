"""Deep Compression: weights share the centroids of a k-means clustering."""

from __future__ import annotations

from torch import Tensor, nn

from haq.quant.quantizers.base import check_values
from haq.quant.quantizers.codebook import CodebookQuantizer
from haq.quant.quantizers.granularity import group
from haq.quant.schemes.base import Scheme

__all__ = ["KMEANS", "KMeansQuantizer"]


class KMeansQuantizer(CodebookQuantizer):
    """A codebook of 2^bits centroids, the best for these weights, fine-tuned with them.

    Args:
        values: The weight.
        bits: Width of an index.
        reads: What a layer multiplies this weight by, `(groups, n, samples)`. A weight's error then counts as much as
            the mean square of what it is multiplied by, which makes it the error of the layer's output where inputs are
            not correlated.
        granularity: Which values share a codebook.
    """

    def __init__(self, values: Tensor, bits: int, reads: Tensor | None = None, *, granularity: str = "tensor") -> None:
        from haq.quant.quantizers.clustering import kmeans

        super().__init__(bits, granularity, signed=True)
        values = check_values(values)
        moments = None if reads is None else group(_moments(values, reads), granularity)
        self.centroids = nn.Parameter(kmeans(group(values, granularity), 2**bits, moments))

    def levels(self) -> Tensor:
        """Returns the centroids; fine-tuning may have let two of them pass each other."""
        return self.centroids.sort(1).values


def _moments(values: Tensor, reads: Tensor) -> Tensor:
    """Returns the mean square of what each weight is multiplied by, in the shape of the weights."""
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
