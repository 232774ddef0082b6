import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.errors import ConfigError, ModelError
from haq.models import get_model
from haq.quant.schemes import Scheme, get_scheme, list_schemes
from haq.quant.schemes.wrpn import widen
from haq.testing import check_quantizer, check_scheme


@pytest.mark.parametrize("name", list_schemes())
def test_conformance(name: str) -> None:
    check_scheme(get_scheme(name))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", list_schemes())
def test_conformance_on_cuda(name: str) -> None:
    check_scheme(get_scheme(name), "cuda")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list_schemes()), st.integers(0, 1000), st.floats(-6, 4), st.integers(1, 5), st.integers(1, 9))
def test_conformance_on_any_tensor(name: str, seed: int, magnitude: float, rows: int, columns: int) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2.0**magnitude
    scheme = get_scheme(name)
    check_quantizer(lambda values: scheme.weight_quantizer(values, scheme.widths[0]), x)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="scheme 'lsq' has no option 'granularty' .did you mean 'granularity'"):
        get_scheme("lsq", granularty="tensor")
    with pytest.raises(ConfigError, match="unknown scheme 'kmean' .did you mean 'kmeans'"):
        get_scheme("kmean")


def test_other_widths_are_linear() -> None:
    """As for the first and last layer of a binary network, at 8 bits."""
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    linear, xnor = (get_scheme(name).weight_quantizer(weight, 8) for name in ("linear", "xnor"))
    assert torch.equal(linear(weight), xnor(weight))


@pytest.mark.parametrize("name", ["resnet20", "mobilenet-v2"])
def test_widening_keeps_the_function(name: str) -> None:
    """WRPN (Mishra et al. 2018, arXiv:1709.01134): twice the filters."""
    torch.manual_seed(0)
    model, sample = get_model(name, num_classes=10).eval(), torch.randn(1, 3, 32, 32)
    wide = widen(model, 2, sample)
    assert torch.allclose(wide(sample), model(sample), rtol=1e-3, atol=1e-4)
    filters = [m.out_channels for m in wide.modules() if isinstance(m, torch.nn.Conv2d)]
    assert filters == [2 * m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)]


def test_a_network_that_counts_its_channels_is_not_widened() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.two(self.one(x)[:, :4])
            return y

    with pytest.raises(ModelError, match="Counting cannot be widened"):
        widen(Counting().eval(), 2, torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: 1 / 0, "scheme 'mine' raised ZeroDivisionError"),
        (lambda: 7, "scheme 'mine' made int, not a Quantizer"),
    ],
)
def test_a_scheme_that_fails_is_named(made, message):
    def factory(values, bits, *, granularity: str = "tensor"):
        return made()

    scheme = Scheme("mine", "a test", None, "none", factory)
    with pytest.raises(ConfigError, match=message):
        scheme.weight_quantizer(torch.ones(2, 3), 4)
