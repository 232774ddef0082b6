import pytest
import torch

from haq.errors import ConfigError, DataError
from haq.quant.api import quantize


def test_size_counts_codes_and_parameters() -> None:
    weight = torch.randn(8, 10)
    assert quantize(weight, 3).size_bytes == 30 + 8 * 4
    assert quantize(weight, 3, "asymmetric", "tensor").size_bytes == 30 + 4 + 1
    assert quantize(weight, 3, "asymmetric").size_bytes == 30 + 8 * 4 + 3, "zero points take as many bits as codes"
    assert quantize(weight, 3, "kmeans", "tensor").size_bytes == 30 + 8 * 4
    assert quantize(weight, 1, "bnn").codes.unique().tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.tensor([1.0, float("nan")]), 4), DataError, "NaN or infinite"),
        ((torch.zeros(0, 3), 4), DataError, "empty tensor of shape .0, 3."),
        ((torch.zeros(3, dtype=torch.int64), 4), DataError, "convert it to floating point"),
        ((torch.ones(3), 9), ConfigError, "bits=9: scheme 'linear' is defined for 1, 2"),
        ((torch.ones(3), 4, "bwn"), ConfigError, "bits=4: scheme 'bwn' is defined for 1"),
        ((torch.ones(3), 4, "linaer"), ConfigError, "did you mean 'linear'"),
        ((torch.ones(3), 4, "linear", "chanel"), ConfigError, "unknown granularity 'chanel' .did you mean 'channel'"),
    ],
)
def test_mistakes(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quantize(*arguments)  # type: ignore[arg-type]


def test_kmeans_with_fewer_values_than_centroids() -> None:
    x = torch.tensor([[1.0, 1.0, 3.0]])
    stored = quantize(x, 4, "kmeans", "tensor")
    assert torch.equal(stored.dequantize(), x)
